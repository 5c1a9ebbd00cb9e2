"""What motion becomes: video, page, glTF, ARKit and other projects' layouts."""
