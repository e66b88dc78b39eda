"""The main job with S3 servers that others wrote, which know nothing of attachd and check every signature themselves.

How they answer where they differ from S3 stands in `test_answers`. A server that cannot be installed here skips its
tests and says why. Installed servers stay in `~/.cache/attachd-s3`, or where ATTACHD_S3_CACHE says.
"""
