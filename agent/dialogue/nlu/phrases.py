"""Patterns of commands, small talk and questions; and the words that remain of a message as a query."""

from __future__ import annotations

import re

from agent.dialogue.nlu.message import STRUCK, Text

THING = (
    r"(?:ones?|films?|movies?|books?|songs?|games?|shows?|items?|things?|picks?|results?|suggestions?|"
    r"recommendations?|options?)"
)
AGAIN = re.compile(
    rf"\b(?:show|list|repeat|give|see|bring)\b[^.;!?]{{0,20}}\b(?:those|these|them|that|it|list|{THING}|"
    rf"same)\b[^.;!?]{{0,20}}\bagain\b|"
    rf"\b(?:those|these|them|same) (?:{THING} )?again\b|\brepeat (?:that|those|them|the list)\b|\bgo back to "
    rf"(?:those|the list|them)\b|"
    r"\b(?:previous|last) list\b|\bwhat were (?:they|those)\b"
)
RESET = re.compile(
    r"\b(?:start (?:over|again|afresh)|reset|forget (?:everything|all (?:of )?(?:that|this|it)|it all)|from "
    r"scratch|new search|clear (?:all|everything))\b"
)
MORE = re.compile(
    rf"\b(?:(?:show|give)(?: me)? more|more (?:of (?:those|these|the same)|{THING})|(?:any|some|what)(?:thing)? "
    rf"else|something else|"
    rf"other {THING}|others|(?:different|another|next|new) {THING}|next|keep going|go on|more please)\b|"
    rf"^[^\w{STRUCK}]*(?:more|another|next)[^\w{STRUCK}]*$"
)
NONE_OF = re.compile(r"\bnone of (?:these|those|them)(?: please)?\b")
INSTEAD = re.compile(
    r"\b(?:instead|rather|forget (?:that|those|it)|never ?mind(?: that)?|actually|scrap that|change of plan)\b"
)
ALSO = re.compile(r"\btoo\W*$|\b(?:also|as well|on top of that|plus|at the same time|and also)\b")
YES = re.compile(
    r"^\W*(?:yes|yeah|yep|yup|sure|ok|okay|fine|please do|do it|do that|go ahead|go for it|drop it|of course|"
    r"alright|sounds good)\b"
)
NO_ANSWER = re.compile(r"^\W*(?:no|nope|nah|not really|no thanks?)\W*$")
ANY = re.compile(
    r"^\W*(?:anything|whatever|surprise me|no preference|i don't (?:care|mind|know)|don't care|you choose|up to "
    r"you|dunno)\W*$"
)
DROP = re.compile(
    r"\b(?:any|forget|drop|remove|ignore|never ?mind|lift|without|no|regardless of|clear|relax|whatever|doesn't "
    r"matter what)\s+"
    r"(?:about )?(?:the |that |my |your )?(?P<what>[\w' -]{2,40}?)\s*(?P<kind>limits?|filters?|restrictions?|"
    r"constraints?|conditions?|rules?|will do|is fine|is ok(?:ay)?)?(?=[.,;!?]|$)"
)
TAKES_BACK = re.compile(r"any |forget|drop|remove|ignore|never|lift|regardless|clear|relax")
EVERYTHING = re.compile(
    r"(?:all )?(?:the )?(?:limits?|filters?|constraints?|restrictions?|conditions?)|all(?: the| my)?"
)
MATTER = re.compile(
    r"\b(?:the )?(?P<what>[\w' -]{2,30}?) (?:doesn't matter|does not matter|don't matter|do not matter|is not "
    r"important|isn't important|"
    r"is (?:fine|ok|okay|allowed) (?:too|after all|again|now)|(?:is|are) (?:fine|ok|okay) after all)\b"
)
WHY = re.compile(
    r"\bwhy\b|\bhow come\b|\bwhat makes you\b|\bexplain\b|\bwhat(?:'s| is) the reason\b|\bhow did you (?:find|"
    r"get|choose|pick)\b"
)
COMPARE = re.compile(
    r"\bcompare\b|\bversus\b|\bvs\b|\bdifferences? between\b|\bhow (?:do|does) .* differ\b|\bwhich (?:one |of "
    r"(?:them|those|these|the two) )?(?:is|are|has|was|should|would|do you)\b"
)
QUESTION = re.compile(
    r"^\W*(?:and |so |but |ok |hey )?(?:who|what|what's|who's|when|where|which|how (?:long|old|much|many|big|"
    r"heavy|new)|is|are|does|do|did|was|were|has|have|"
    r"can you tell|tell me|describe|in what|from what|from which|in which)\b"
)
CHAT = {
    "greeting": re.compile(
        r"^\W*(?:hi|hello|hey|hiya|good (?:morning|evening|afternoon|day)|greetings|howdy)\b(?: there| evoke| "
        r"everyone| all)?\W*$"
    ),
    "thanks": re.compile(
        r"^\W*(?:thanks?(?: you)?(?: so much| a lot| very much)?|thank you.*|cheers|great,? thanks?|perfect,? "
        r"thanks?|ta|lovely|cool|nice|great|awesome|perfect)\W*$"
    ),
    "bye": re.compile(
        r"^\W*(?:bye|goodbye|good ?night|see you(?: later)?|that's all|that is all|i'm done|quit|exit)\W*$"
    ),
    "who": re.compile(
        r"\b(?:who|what) are you\b|\bwhat can you do\b|\bhow do(?:es)? (?:you|this) work\b|^\W*help\W*$|\bare "
        r"you (?:a |an )?(?:human|robot|bot|ai|real)\b"
    ),
    "how": re.compile(r"^\W*how(?:'s| is| are) (?:you|it going|things)\b[^,;]*$"),
}
COUNT = re.compile(
    r"\b(?:give me|show me|recommend|suggest|find(?: me)?|list|top|just|only|i want|need)\s+(?:me )?(?:the "
    r")?(?:top )?(?P<n>\d{1,2}|one|two|three|four|five|six|seven|eight|nine|ten)\b(?! ?-?(?:hours?|hrs?|h|"
    r"minutes?|mins?|years?|decades?|dollars?|euros?|bucks|stars?|pages?)\b)(?! (?:or|and|to) )|\btop "
    r"(?P<m>\d{1,2})\b"
)
REQUEST = re.compile(
    r"\b(?:recommend|suggest|looking for|look for|find|show me|give me|i want|i'd like|i would like|i need|i "
    r"feel like|in the mood for|"
    r"fancy|how about|what about|got any|do you have|have you got|something|anything|any|can you|could you|let's|"
    r"prefer|search)\b"
)  # fmt: skip
COMPARED = re.compile(
    r"\b(?:more|less|fewer|too \w+|(?:newer|older|longer|shorter|earlier|later|cheaper|higher|lower) than)\b"
)
ER = re.compile(
    r"\b(?!never|after|other|together|rather|father|mother|brother|sister|summer|winter|murder|soldier|character|monster|water|"
    r"power|order|under|over|paper|river|silver|computer|super|whatever|however|remember|corner|border|theater|teacher)\w{3,}er\b"
)
IER = re.compile(
    r"\b(?!soldier|barrier|carrier|frontier|premier|terrier|courier|glacier|cavalier|earlier)(\w{3,})ier\b"
)
AVOID = re.compile(
    r"\b(?P<cue>less|fewer|not (?:so|too|as|very|that|overly)(?: much| many)?|too(?: much| many)?|so|no more|no|"
    r"not|without(?: any)?|nothing|nothing too|"
    r"minus|except|avoid|skip|don't (?:want|like)(?: any| too much)?|do not want|hate|isn't|that isn't|sick of|"
    r"tired of|free of)\s+"
    rf"(?P<what>(?:(?!\b(?:but|and|please|or|just|only|with|like)\b)[\w' -])+)(?:\s*(?:,|\bor\b|"
    rf"\band\b)\s*(?P<more>(?:(?!\b(?:but|please|just|only|with)\b)[\w' -])+)(?=[.;!?{STRUCK}]|$))?"
)
HARD = re.compile(r"(?:no|no more|without(?: any)?|nothing|minus|except|avoid|skip|free of|isn't|that isn't|not)")
EMPTY = frozenset(
    """
    best a about actually after again all already also am amazing an and another any anyone anything are as at awful back
    basically be because been better bit book books bored boring both but by can century choose come could d definitely did
    directed disliked do does doesn't doing don't done eight either else even evening ever every everyone exactly fancy
    featuring feel feeling feels few fifth film films find fine finished five for four fourth from fun game games get give
    go going good got great had has hate hated have hear hello help hey hi how however i i'd i'll i'm i've id if im in
    instead interested into is isn't it it's item items its ive just keep kind know last least let let's lets like liked
    list listen little ll look looking lot love loved lovely made make many maybe me mean mind mood more most movie movies
    much must my need new newer nice nine no not nothing now of off oh ok okay older on one ones only or other others our
    out over people's perfect pick picks play please prefer preferably pretty probably quite rated rather re read reading
    really recommend recommendation recommendations released right s same say search second see seen set seven should show
    shows similar six so some somehow someone something something's song songs sort starring stars stuff style such suggest
    suggestion suggestions sure take tell ten terrible than thanks that that's the their them then there these they thing
    things think third this those though three time to today tomorrow tonight too top try two type under up us ve very vibe
    vibes want was watch watched watching way we weekend well were what what's when where where's which while who why will
    with without would yeah yes you your
    """.split()
)
"""Words that are of no use in a query."""


def remaining_query(text: Text) -> str:
    """Return the words that no parser struck out as a query, without empty words at either end; "" if none remain."""
    pieces = [
        " ".join(word for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", piece))
        for piece in re.split(rf"[{STRUCK},.;:!?()\n]+", text.lower)
    ]
    kept = []
    for piece in pieces:
        words = piece.split()
        while words and (words[0] in EMPTY or words[0].partition("'")[0] in EMPTY):
            words.pop(0)
        while words and (words[-1] in EMPTY or words[-1].partition("'")[0] in EMPTY):
            words.pop()
        if words:
            kept.append(" ".join(words))
    # Descriptions of items use the positive form: "funnier" is searched for as "funny".
    return IER.sub(r"\1y", ", ".join(kept)[:300])


def find_avoided(text: Text) -> tuple[list[str], list[str]]:
    """Return the phrases to avoid that are no field values, each struck out, and those of them that are excluded outright."""
    away: list[str] = []
    strictly: list[str] = []
    for match in text.find(AVOID):
        for part in (match["what"], match["more"]):
            words = [w for w in (part or "").split() if w not in EMPTY and w not in ("much", "many")]
            if not words or len(words) > 5:
                continue
            phrase = " ".join(words)
            away.append(phrase)
            if HARD.fullmatch(match["cue"]):
                strictly.append(phrase)
        if away:
            text.strike(*match.span())
    return away, strictly
