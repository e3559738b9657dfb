"""The machines: what is free, where a gang fits, how a program is started, watched and stopped."""
