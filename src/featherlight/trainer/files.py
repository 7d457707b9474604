"""Files that are either the old one or the new one, whatever happens in between; made in the room of archives."""

from featherlight.archive.files import replace_file, sync_directory, write_atomically

__all__ = ["replace_file", "sync_directory", "write_atomically"]
