"""A volume's export as a block device of this node, and as a mounted filesystem.

One guardian process for each attached volume (`guardian.py`) holds the device and what carries its
requests to the daemon; `attaching.py` starts, finds and ends guardians; `mounting.py` is the whole
way from a secondary to a mounted filesystem and back. `README.md` has the picture.
"""
