"""The words of the embedded world: what a scene can hold, what a sign can read, how questions are put."""

KINDS = ("mug", "box", "ball", "star", "lamp", "tree", "fish", "house")
PLURALS = {kind: kind + "s" for kind in KINDS} | {"box": "boxes", "fish": "fish"}
COLOURS = {  # sRGB
    "red": (205, 35, 40),
    "orange": (240, 135, 25),
    "yellow": (238, 212, 35),
    "green": (40, 150, 60),
    "blue": (40, 85, 200),
    "purple": (128, 50, 165),
    "pink": (242, 125, 175),
    "black": (35, 35, 40),
}
BACKGROUNDS = (
    (236, 232, 224),
    (218, 232, 240),
    (226, 240, 220),
    (244, 234, 214),
    (230, 224, 240),
    (226, 226, 226),
)
NUMBERS = ("one", "two", "three", "four")
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = dict(zip(RELATIONS, ("right", "left", "below", "above"), strict=True))
BETWEEN = {"left": "left of", "right": "right of", "above": "above", "below": "below"}  # as a preposition
# fmt: off
SIGNS = (
    "nova", "luna", "echo", "delta", "onyx", "pixel", "river", "cloud", "maple", "tiger",
    "zebra", "robin", "storm", "ember", "coral", "orbit", "piano", "mango", "cedar", "comet",
    "flint", "frost", "gecko", "koala", "lotus", "magic", "noble", "ocean", "pearl", "quest",
    "raven", "solar", "torch", "ultra", "vivid", "waltz", "xenon", "yacht", "jazz", "kiwi",
)
# fmt: on

# What the human asks for a caption: 11 ways, as in the contest's seed set.
CAPTION_PROMPTS = (
    "What is in the picture?",
    "Say briefly what you see.",
    "Give a short caption.",
    "Describe the picture in a few words.",
    "What does this picture show?",
    "Write one line about the picture.",
    "Name what is shown here.",
    "Sum up the picture.",
    "Caption this picture.",
    "Tell me what is shown.",
    "What can be seen here?",
)
SIGN_QUESTIONS = (
    "What does the sign say?",
    "What word is on the sign?",
    "What is written on the sign?",
    "What does the sign read?",
    "Which word can you read?",
)
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
OCR = "Reference OCR token: "
HINT = "The picture shows a sign and some objects."

# Defects of the seed captions.
GENERIC = (
    "an image",
    "a nice picture",
    "a photo",
    "some objects in a picture",
    "nice photo of something",
    "picture of the day",
    "image",
    "a thing",
)
BOILERPLATE = (
    "click here to buy now, free shipping",
    "stock photo, royalty free download",
    "<p>best price online</p> order today",
    "visit http://www.shop.example/sale for more",
    "all rights reserved, photo by admin@shop.example",
    "subscribe for the latest news and offers",
    "share this post, like and follow",
    "page not found, please try again later",
)
