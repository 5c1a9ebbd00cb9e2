"""DualTalk: model, training stage, decode and file layout."""
