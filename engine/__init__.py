"""Training and evaluation of built objects; config.py and build.py alone know the config."""
