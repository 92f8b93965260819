"""The tractable model of `softmax_bottleneck.py`. Not `bottleneck`: pandas takes that name for its accelerator."""
