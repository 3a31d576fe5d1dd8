"""The files of a model's folder besides its weights, over the channel of the weights.

They are one more published model of a server, of the role `files`: its tensors are the bytes of
each file, under the path inside the folder. So digests, tokens, TLS, deadlines and several sources
are what they are for weights.
"""
