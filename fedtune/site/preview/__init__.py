"""What would leave a site in a round, field by field, before anything does.

Everything is read from the types that are sent, and not from a list that could fall behind them: a field that
is added to a reply shows up here at once, and a test demands that its meaning is written down.

Read in this order::

    meanings    what each field of each type says, and which metric has to be allowed for it
    described   a message, its fields and its tensors, as they are shown
    frames      the bytes of secure aggregation, from the types of its trips
    outgoing    the messages of a round
    trial       one real step of training at this site, of which nothing is sent
"""
