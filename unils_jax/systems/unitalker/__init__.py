"""UniTalker: model, annotations, training stage, decode and file layout."""
