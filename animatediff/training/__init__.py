"""Adapting a frozen video backbone to motion transfer: what train.py's loop is made of."""
