"""The default: a small teacher and text, fetched from package registries and cleaned."""
