"""The floor below the four rooms: the error tree, files with digests, folders of TOML. No torch."""
