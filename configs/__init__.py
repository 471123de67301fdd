"""The configurations that come with isoloss; a package so that they are installed beside the code."""
