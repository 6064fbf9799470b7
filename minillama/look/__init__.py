"""Look inside a trained model, token by token: `python -m minillama look RUN`.

    inside.py     what a model does with a text, as arrays: reads the caches of `model_forward`; pure functions, for notebooks, too
    known.py      what could be known: the probability of the next bytes by the built-in corpus' grammar
    data.py       a view: everything there is to see of one text, as one dict that JSON can hold; Session makes views of a run
    html.py       the page as one file, a view inside
    server.py     the page, live, on 127.0.0.1
    page/         its HTML, CSS and JavaScript: no build step, nothing from elsewhere
"""
