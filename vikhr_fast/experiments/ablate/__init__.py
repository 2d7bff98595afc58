"""Tables 7 to 10 of the paper as grids of runs (section 4.3): what did each choice buy?"""
