"""The model in memory: loaded, sharded, in the DeepSpeed engine, and exported.

May import the ground of `training`, `data.prepared`, `model_files`, `run` and what these may import. Start with
`engine`.
"""
