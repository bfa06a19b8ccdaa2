"""The autoregressive models over video tokens: presets, the transformer on megatron-core, its loss, its files."""
