"""The embedded default: a small teacher and text, fetched from package registries and cleaned."""
