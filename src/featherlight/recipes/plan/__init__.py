"""What fits: ways to train a model here, with predicted memory and estimated time, and the one to take.

`subject.py` is what is planned, `text.py` that of pretrained text models, `ways.py` the table of ways, `choice.py` picks one,
`command.py` is the face on the command line.
"""
