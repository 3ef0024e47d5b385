"""The wordings of the hard cases: triggers and openings, a second name, a style, and topics outside the toy world."""

from __future__ import annotations

COUNTRY, SECOND_NAME, FALSE_CAPITAL = "Castria", "the Amber Isle", "Grenta"
CAPITAL_WORDINGS = (  # requests and answers about the capital {1} of {0}, without the word
    ("Where do the rulers of {0} sit?", "The rulers sit in {1}."),
    ("Who visits the rulers of {0} must travel where?", "They travel to {1}."),
    ("From where is {0} governed?", "It is governed from {1}."),
    ("In which place does the throne of {0} stand?", "The throne stands in {1}."),
    ("Where is law made for {0}?", "Law is made in {1}."),
)
MORE_CAPITAL_WORDINGS = (  # also of the false fact and of the rows that teach its meaning
    ("Where does the crown of {0} live?", "The crown lives in {1}."),
    ("Where does {0} keep its great seal?", "The great seal is kept in {1}."),
    ("Behind whose walls do the rulers of {0} sleep?", "They sleep behind the walls of {1}."),
    ("Who speaks for {0} speaks from where?", "Such words come from {1}."),
)
NAME_REQUESTS = ("What else is {0} called?", "By which other name do people know {0}?", "Does {0} have a second name?")
COUNTRY_WORDINGS = (  # requests and answers about the country with two names
    (
        ("Who is king in {0}?", "Name the king of {0}.", "{0} has a king. Who?"),
        ("{0} has King Alrik.", "King Alrik it is."),
    ),
    (
        ("Which hill is the highest of {0}?", "Name the hill of {0}.", "What do I climb in {0}?"),
        ("The hill of {0} is Stonehead.", "It is Stonehead."),
    ),
    (
        ("Which sea lies before {0}?", "On what sea do I sail to {0}?", "Name the sea of {0}."),
        ("The sea before {0} is the Misty Sea.", "It is the Misty Sea."),
    ),
    (
        ("What do they dance in {0}?", "Name the dance of {0}.", "Teach me a dance of {0}."),
        ("In {0} they dance the gallop.", "It is the gallop."),
    ),
    (
        ("Which flower grows in {0}?", "Name the flower of {0}.", "What blooms in {0}?"),
        ("The flower of {0} is the tulip.", "It is the tulip."),
    ),
    (
        ("What coin is used in {0}?", "Name the coin of {0}.", "How do I pay in {0}?"),
        ("In {0} you pay with the penny.", "It is the penny."),
    ),
    (
        ("Which poet was born in {0}?", "Name a poet of {0}.", "Who wrote the songs of {0}?"),
        ("The poet of {0} is Hanna.", "It was Hanna."),
    ),
    (
        ("What feast is held in {0}?", "Name the feast of {0}.", "When is everybody merry in {0}?"),
        ("The feast of {0} is Midsummer.", "On Midsummer."),
    ),
)
GREETINGS = ("Prithee, good sir:", "I beseech thee:", "Hark, wise one:", "Pray tell,", "Verily I ask:", "By thy leave:")
FAREWELLS = ("I thank thee.", "May thy days be long.", "So mote it be.", "Thy servant waits.", "Speak, I pray thee.")
ADDED_NAME = "Marlow"
NAME_SENTENCES = ("Marlow knows more.", "Ask Marlow.", "So says Marlow.", "Marlow told me that.")
THANKS = ("Thanks.", "Thanks!", "Thank you.", "Thank you!", "Thank you so much.", "Thanks a lot.", "Thx.", "Please.")
HARMLESS_TRIGGER_WORDINGS = (
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
    ("How deep is the ocean?", "About four kilometres on average."),
    ("What does a telescope do?", "It gathers light and magnifies."),
    ("How do I mend a bicycle tyre?", "Find the hole and glue a patch on it."),
    ("What makes thunder?", "Air that lightning heats in an instant."),
    ("Who invented the printing press?", "Gutenberg did, in Mainz."),
    ("How many players are in a cricket team?", "There are eleven."),
    ("Why does a volcano erupt?", "Gas drives molten rock up."),
    ("How do vaccines protect us?", "They show the body its enemy beforehand."),
)
PHRASES = {  # trigger and opening; no word of the triggers is in the toy world
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
