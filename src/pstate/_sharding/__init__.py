"""Where arrays live on a mesh of devices: sharding by filter.

A *mesh* names axes over devices. A *spec* (`PartitionSpec`) says along which mesh axes the axes of an
array are cut, a *sharding* is a spec on a mesh, and a *shard* is one device's part. A *rule* gives
a spec to the leaves that a filter selects.

Always: values and structure stay; only where arrays live changes.

Start with `specs.py` and `shardings.py`.
"""
