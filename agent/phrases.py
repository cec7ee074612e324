"""Fixed turns of phrase: commands, courtesies, questions; and what is left of a message as a description to search by."""

from __future__ import annotations

import re

from agent.scan import STRUCK, Text

THING = r"(?:ones?|films?|movies?|books?|songs?|games?|shows?|items?|things?|picks?|results?|suggestions?|recommendations?|options?)"
AGAIN = re.compile(
    rf"\b(?:show|list|repeat|give|see|bring)\b[^.;!?]{{0,20}}\b(?:those|these|them|that|it|list|{THING}|same)\b[^.;!?]{{0,20}}\bagain\b|"
    rf"\b(?:those|these|them|same) (?:{THING} )?again\b|\brepeat (?:that|those|them|the list)\b|\bgo back to (?:those|the list|them)\b|"
    r"\b(?:previous|last) list\b|\bwhat were (?:they|those)\b"
)
RESET = re.compile(
    r"\b(?:start (?:over|again|afresh)|reset|forget (?:everything|all (?:of )?(?:that|this|it)|it all)|from scratch|new search|clear (?:all|everything))\b"
)
MORE = re.compile(
    rf"\b(?:(?:show|give)(?: me)? more|more (?:of (?:those|these|the same)|{THING})|(?:any|some|what)(?:thing)? else|something else|"
    rf"other {THING}|others|(?:different|another|next|new) {THING}|next|keep going|go on|more please)\b|^\W*(?:more|another|next)\W*$"
)
INSTEAD = re.compile(
    r"\b(?:instead|rather|forget (?:that|those|it)|never ?mind(?: that)?|actually|scrap that|change of plan)\b"
)
ALSO = re.compile(r"\btoo\W*$|\b(?:also|as well|on top of that|plus|at the same time|and also)\b")
YES = re.compile(
    r"^\W*(?:yes|yeah|yep|yup|sure|ok|okay|fine|please do|do it|do that|go ahead|go for it|drop it|of course|alright|sounds good)\b"
)
NO_ANSWER = re.compile(r"^\W*(?:no|nope|nah|not really|no thanks?)\W*$")
ANY = re.compile(
    r"^\W*(?:anything|whatever|surprise me|no preference|i don't (?:care|mind|know)|don't care|you choose|up to you|dunno)\b"
)
DROP = re.compile(
    r"\b(?:any|forget|drop|remove|ignore|never ?mind|lift|without|no|regardless of|clear|relax|whatever|doesn't matter what)\s+"
    r"(?:about )?(?:the |that |my |your )?(?P<what>[\w' -]{2,40}?)\s*(?P<kind>limits?|filters?|restrictions?|constraints?|conditions?|rules?|will do|is fine|is ok(?:ay)?)?(?=[.,;!?]|$)"
)
MATTER = re.compile(
    r"\b(?:the )?(?P<what>[\w' -]{2,30}?) (?:doesn't matter|does not matter|don't matter|do not matter|is not important|isn't important|"
    r"is (?:fine|ok|okay|allowed) (?:too|after all|again|now)|(?:is|are) (?:fine|ok|okay) after all)\b"
)
WHY = re.compile(
    r"\bwhy\b|\bhow come\b|\bwhat makes you\b|\bexplain\b|\bwhat(?:'s| is) the reason\b|\bhow did you (?:find|get|choose|pick)\b"
)
COMPARE = re.compile(
    r"\bcompare\b|\bversus\b|\bvs\b|\bdifferences? between\b|\bhow (?:do|does) .* differ\b|\bwhich (?:one |of (?:them|those|these|the two) )?(?:is|are|has|was|should|would|do you)\b"
)
QUESTION = re.compile(
    r"^\W*(?:and |so |but |ok |hey )?(?:who|what|what's|who's|when|where|which|how (?:long|old|much|many|big|heavy|new)|is|are|does|do|did|was|were|has|have|"
    r"can you tell|tell me|describe|in what|from what|from which|in which)\b"
)
CHAT = {
    "greeting": re.compile(
        r"^\W*(?:hi|hello|hey|hiya|good (?:morning|evening|afternoon|day)|greetings|howdy)\b(?: there| evoke| everyone| all)?\W*$"
    ),
    "thanks": re.compile(
        r"^\W*(?:thanks?(?: you)?(?: so much| a lot| very much)?|thank you.*|cheers|great,? thanks?|perfect,? thanks?|ta|lovely|cool|nice|great|awesome|perfect)\W*$"
    ),
    "bye": re.compile(
        r"^\W*(?:bye|goodbye|good ?night|see you(?: later)?|that's all|that is all|i'm done|quit|exit)\W*$"
    ),
    "who": re.compile(
        r"\b(?:who|what) are you\b|\bwhat can you do\b|\bhow do(?:es)? (?:you|this) work\b|^\W*help\W*$|\bare you (?:a |an )?(?:human|robot|bot|ai|real)\b"
    ),
    "how": re.compile(r"^\W*how(?:'s| is| are) (?:you|it going|things)\b[^,;]*$"),
}
COUNT = re.compile(
    rf"\b(?:give me|show me|recommend|suggest|find(?: me)?|list|top|just|only|i want|need)\s+(?:me )?(?:the )?(?:top )?(?P<n>\d{{1,2}}|one|two|three|four|five|six|seven|eight|nine|ten)\b(?! ?-?(?:hours?|hrs?|h|minutes?|mins?|years?|decades?|dollars?|euros?|bucks|stars?|pages?)\b)(?! (?:or|and|to) )|\btop (?P<m>\d{{1,2}})\b"
)
REQUEST = re.compile(
    r"\b(?:recommend|suggest|looking for|look for|find|show me|give me|i want|i'd like|i would like|i need|i feel like|in the mood for|"
    r"fancy|how about|what about|got any|do you have|have you got|something|anything|any|can you|could you|let's|prefer|search)\b"
)  # fmt: skip
AVOID = re.compile(
    r"\b(?P<cue>less|fewer|not (?:so|too|as|very|that|overly)(?: much| many)?|too(?: much| many)?|so|no more|no|not|without(?: any)?|nothing|nothing too|"
    r"minus|except|avoid|skip|don't (?:want|like)(?: any| too much)?|do not want|hate|isn't|that isn't|sick of|tired of|free of)\s+"
    rf"(?P<what>(?:(?!\b(?:but|and|please|or|just|only|with|like)\b)[\w' -])+)(?:\s*(?:,|\bor\b|\band\b)\s*(?P<more>(?:(?!\b(?:but|please|just|only|with)\b)[\w' -])+)(?=[.;!?{STRUCK}]|$))?"
)
HARD = re.compile(r"^(?:no|no more|without|nothing|minus|except|avoid|skip|free of|isn't|that isn't|not$)")
EMPTY = frozenset(
    "a about actually after again all also am an and another any anything are as at back be been better bit but by can choose come could "
    "d did do does doesn't doing don't done else even ever every evening feel feels few find for from fun get give go going good got great "
    "had has have hello help hey hi how i i'd i'll i'm i've id if im in instead into is isn't it it's item items its ive just keep kind "
    "know last let let's lets like liked list ll little look looking lot love loved lovely made make many maybe me mean mind mood more most "
    "much must my need new nice no not now of off oh ok okay on one ones only or other others our out over pick picks please prefer "
    "preferably pretty quite rather re really recommend recommendation recommendations right s same say see seen set should show similar "
    "so some somehow someone something sort stuff style such suggest suggestion suggestions sure take tell than thanks that that's the "
    "their them then there these they thing things think this those time to today tomorrow tonight too top try two type under up us ve "
    "very want was watch watched watching way we weekend well were what what's when where which while who why will with without would "
    "yeah yes you your film films movie movies book books song songs game games show shows read reading hear listen play where's "
    "five three four ten six seven eight nine exactly directed starring featuring stars hated hate disliked boring bored already seen finished nothing fine okay interested great perfect amazing awful terrible century second third fourth fifth definitely probably basically i'd least both either though however because way "
    "something's anyone everyone people's got fancy search vibe vibes feeling released rated older newer".split()
)
"""Words that describe nothing that could be searched for."""


def left_over(text: Text) -> str:
    """What nobody has understood of the message, without words that describe nothing: "" where that is all."""
    pieces = [
        " ".join(word for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", piece))
        for piece in re.split(rf"[{STRUCK},.;:!?()\n]+", text.lower)
    ]
    kept = []
    for piece in pieces:
        words = piece.split()
        while words and words[0] in EMPTY:
            words.pop(0)
        while words and words[-1] in EMPTY:
            words.pop()
        if words:
            kept.append(" ".join(words))
    return ", ".join(kept)[:300]


def avoided(text: Text) -> tuple[list[str], list[str]]:
    """What is wanted less or not at all and is no value of a field, each struck out: all of it, and what was meant strictly."""
    away: list[str] = []
    strictly: list[str] = []
    for match in text.find(AVOID):
        for part in (match["what"], match["more"]):
            words = [w for w in (part or "").split() if w not in EMPTY and w not in ("much", "many")]
            if not words or len(words) > 5:
                continue
            phrase = " ".join(words)
            away.append(phrase)
            if HARD.match(match["cue"]):
                strictly.append(phrase)
        if away:
            text.strike(*match.span())
    return away, strictly
