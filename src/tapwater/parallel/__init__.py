"""Several processes: axes dp, ep and pp on torch.distributed, which nothing else imports."""
