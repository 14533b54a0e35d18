"""Other ways of turning a folder of images into a folder of masks, each as its users would write it, with one network.

``python -m isicrt.benchmarks.peers --images DIR --model FILE`` times them beside `isicrt segment`. Each is a script of
its own that imports what it needs when it is run, and ends with a call of `harness.run`.
"""
