"""Published layouts in: entries, then one record at a time."""

from data_pipelines.sources.dualtalk import DualTalkSource
from data_pipelines.sources.folder import FilesSource
from data_pipelines.sources.seamless import SeamlessSource
from data_pipelines.sources.tracks import TracksSource

# Layouts that are folders of files; the only other one, the release, is an LMDB with an index.
FOLDERS = {"dualtalk": DualTalkSource, "files": FilesSource, "seamless": SeamlessSource, "tracks": TracksSource}
