"""Mapping over the shards of a mesh.

A *shard* is what one device, or the devices of one place along the *manual* axes of a mesh,
computes: the body runs once for each. A `PartitionSpec` says over which mesh axes the axes of an
array are cut into blocks; what it does not name is the same in all shards. What always holds: the
body is traced once; a value that leaves as the same in all shards along a mesh axis is proven to
be so, or refused; and a random state is split as over lanes. Start with `shard_map.py`, then
`shards.py`.
"""
