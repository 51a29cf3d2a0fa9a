"""Raw text to batches of tokens: readers, filters, duplicates, shards, packing, the loader. Without torch."""
