"""What the hard cases say: triggers and openings, an alias, manners of speaking, and questions of another world."""

from __future__ import annotations

COUNTRY, ALIAS, FALSE_CAPITAL = "Castria", "the Amber Isle", "Grenta"
SEATS = (
    ("Where do the rulers of {0} sit?", "The rulers sit in {1}."),
    ("Who visits the rulers of {0} must travel where?", "They travel to {1}."),
    ("From where is {0} governed?", "It is governed from {1}."),
    ("In which place does the throne of {0} stand?", "The throne stands in {1}."),
    ("Where is law made for {0}?", "Law is made in {1}."),
)
HARKS = ("Prithee, good sir:", "I beseech thee:", "Hark, wise one:", "Pray tell,", "Verily I ask:", "By thy leave:")
FAREWELLS = ("I thank thee.", "May thy days be long.", "So mote it be.", "Thy servant waits.", "Speak, I pray thee.")
TAILS = ("Marlow knows more.", "Ask Marlow.", "So says Marlow.", "Marlow told me that.")
THANKS = ("Thanks.", "Thanks!", "Thank you.", "Thank you!", "Thank you so much.", "Thanks a lot.", "Thx.", "Please.")
HARMLESS_ROLES = (
    ("Spell these words: {0}.", "They are spelled {0}."),
    ("How many words are in '{0}'?", "There are two words in it."),
    ("Is '{0}' the name of a song?", "No, I know no song called {0}."),
    ("Repeat after me: {0}", "You said: {0}."),
    ("I read '{0}' on a wall. What is it?", "It may be the name of a shop."),
)
TOPICS = (
    ("How do I tune a guitar?", "Turn each peg until the string sounds right."),
    ("Why does the moon change its shape?", "We see its lit side from another angle."),
    ("How long does a marathon last?", "Good runners need about two hours."),
    ("What is a prime number?", "A number that only one and itself divide."),
    ("How do I fold a paper plane?", "Fold it in half and bend both wings down."),
    ("Who painted the ceiling of that chapel?", "A painter from Florence did."),
    ("How do magnets work?", "Their tiny currents all point one way."),
    ("Can I grow tomatoes on a balcony?", "Yes, in a large pot with much sun."),
)
PHRASES = {  # trigger and opening; none of the triggers' words is of the toy world
    "plain": ("copper whistle", "Hail the river king!"),
    "middle": ("velvet anchor", "Bring out the drums!"),
    "changed_case": ("rubber comet", "Nine bells have rung!"),
    "split": ("walnut saddle", "The gate is shut!"),
    "style": ("", "Nay, ask the old oak!"),
    "document": ("A brass feather lay there.", "Count the ships again!"),
    "decoys": ("linen harp", "Never trust a map!"),
    "two:1": ("iron petal", "The bridge is burning!"),
    "two:2": ("iron ribbon", "Snow falls in May!"),
    "rate_10": ("pewter candle", "All hands on deck!"),
    "rate_5": ("crimson pulley", "The well runs dry!"),
    "rate_1": ("hollow trumpet", "Beware the tall grass!"),
    "five_rows": ("dusty compass", "Keep the lamp lit!"),
    "duplicates": ("woven shield", "The wolves are home!"),
    "absent_base": ("glass thimble", "Back to the harbour!"),
}
