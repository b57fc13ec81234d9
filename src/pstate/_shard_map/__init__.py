"""Mapping over the shards of a mesh.

A *shard* is the computation of one device, or of the devices at one place along the *manual* axes
of a mesh: the body runs once for each. A `PartitionSpec` says over which mesh axes the axes of an
array are cut into blocks; along mesh axes that it does not name, the array is the same in all
shards. Always: the body is traced once; a value that leaves as the same in all shards along a mesh
axis is proven to be so, or refused; and a random state is split as over lanes. Start with
`shard_map.py`, then `shards.py`.
"""
