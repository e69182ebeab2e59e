"""What a person sees: the page of a run, its drawings and charts, the terminal, and the words for numbers.

Takes plain rows and arrays. Only `lab` and `app` import it; must not know how the numbers came about.
"""
