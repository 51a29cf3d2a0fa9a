"""tapwater: DeepSeek-V2-class models on the machines people already have."""
