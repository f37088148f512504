"""A model behind an OpenAI-compatible HTTP interface, with a page to chat.

Read in this order: engine (the thread that owns the model), chat (requests to prompts), reply, app (routes,
key, limits), metrics, cli.
"""
