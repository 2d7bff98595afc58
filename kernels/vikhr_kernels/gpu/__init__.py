"""The Triton kernels and their launchers, imported only where they run: a package without Triton works on a CPU.

Inside the kernels `p_` are pointers, `o_` offsets, `m_` masks, `b_` the blocks a program holds; a comment gives a
block's shape where it isn't one row.
"""
