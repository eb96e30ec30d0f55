"""Merging networks of one architecture that were trained apart.

Hidden units have no names: what one network keeps in its third unit, another keeps in its seventh. `align` finds the
group element (`archc.ir.axes`) that brings one network nearest to another without changing what it computes; then the
weights can be averaged, and `repair` sets right the statistics that averaging has shrunk.
"""
