"""A volume's export as a block device of this node."""
