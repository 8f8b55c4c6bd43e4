"""Words of the simulated market: topics with their own vocabularies, styles, price tiers, brand names.

A topic's line reads `department > topic: products / attributes`. Four topics make a department; the topics a user moves
on to from a topic are its neighbours in the department and the next department's first topic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TOPICS = """
Electronics > Phones: smartphone, handset, phone case, charger, screen protector / dual-sim, fast-charging, oled, shatterproof
Electronics > Laptops: notebook, ultrabook, docking station, laptop sleeve, keyboard / backlit, aluminium, quad-core, lightweight
Electronics > Audio: headphones, earbuds, soundbar, turntable, speaker / noise-cancelling, wireless, bass-rich, hi-fi
Electronics > Cameras: mirrorless camera, lens, tripod, action cam, photo printer / wide-angle, stabilised, weather-sealed, full-frame
Beauty > Skin Care: moisturiser, serum, face wash, night cream, sunscreen / hydrating, fragrance-free, retinol, soothing
Beauty > Make-up: lipstick, mascara, foundation, eyeshadow palette, blush / matte, long-wear, shimmering, waterproof
Beauty > Hair Care: shampoo, conditioner, curling iron, hair mask, hair oil / sulphate-free, keratin, volumising, argan
Beauty > Fragrance: eau de parfum, body mist, cologne, scented candle, roll-on / woody, citrus, floral, amber
Fashion > Women's Wear: summer dress, blouse, cardigan, skirt, trench coat / linen, pleated, wrap, high-waisted
Fashion > Men's Wear: oxford shirt, chinos, blazer, polo, overcoat / slim-fit, wrinkle-free, flannel, tailored
Fashion > Shoes: sneakers, ankle boots, loafers, sandals, heels / suede, cushioned, slip-on, leather-soled
Fashion > Jewellery: necklace, hoop earrings, signet ring, bracelet, watch strap / sterling, gold-plated, pearl, engraved
Home > Furniture: sofa, bookshelf, bed frame, dining table, armchair / oak, mid-century, velvet, modular
Home > Kitchen: frying pan, chef knife, blender, espresso machine, stockpot / non-stick, cast-iron, dishwasher-safe, carbon-steel
Home > Bedding: duvet, pillow, fitted sheet, mattress topper, throw blanket / bamboo, goose-down, percale, memory-foam
Home > Garden: hedge trimmer, planter, raised bed, garden hose, lawn mower / rust-proof, self-watering, cordless, frost-hardy
Sports > Running: running shoes, hydration vest, gps watch, compression socks, running shorts / carbon-plated, breathable, reflective, marathon
Sports > Cycling: road bike, helmet, cycling jersey, pedal, bike light / aerodynamic, tubeless, clipless, gravel
Sports > Fitness: dumbbell set, yoga mat, kettlebell, resistance band, rowing machine / adjustable, foldable, anti-slip, home-gym
Sports > Outdoor: tent, sleeping bag, trekking poles, camping stove, rucksack / ultralight, three-season, windproof, titanium
Food > Coffee: espresso beans, cold brew, pour-over kettle, coffee grinder, drip bags / single-origin, dark-roast, arabica, fair-trade
Food > Snacks: trail mix, protein bar, dark chocolate, crisps, granola / gluten-free, sea-salt, crunchy, low-sugar
Food > Meal Kits: dinner box, recipe kit, soup bundle, pasta kit, salad box / ready-in-20, family-size, plant-based, chef-made
Food > Wine: red wine, sparkling wine, tasting set, decanter, rosé / oak-aged, dry, vineyard, award-winning
Games > Mobile Puzzle: puzzle game, word quest, match-three, sudoku app, brain trainer / relaxing, daily, offline, addictive
Games > Strategy: city builder, tower defence, empire game, card battler, war game / multiplayer, turn-based, ranked, epic
Games > Role Playing: fantasy rpg, dungeon crawler, hero saga, monster quest, idle adventure / open-world, anime, legendary, co-op
Games > Casino: slots app, poker table, bingo club, roulette, solitaire / jackpot, free-spin, high-roller, lucky
Finance > Banking: current account, savings account, budgeting app, debit card, joint account / no-fee, instant, high-yield, contactless
Finance > Insurance: car insurance, home cover, pet insurance, travel cover, life policy / comprehensive, no-excess, multi-policy, flexible
Finance > Investing: trading app, index fund, robo adviser, pension plan, stock screener / commission-free, diversified, long-term, fractional
Finance > Loans: personal loan, mortgage, credit builder, car finance, debt consolidation / low-rate, pre-approved, fixed-rate, same-day
Travel > Hotels: city hotel, boutique stay, resort, guest house, spa weekend / sea-view, breakfast-included, adults-only, downtown
Travel > Flights: return flight, weekend break, long-haul fare, airport transfer, lounge pass / direct, last-minute, flexible-fare, business-class
Travel > Cruises: river cruise, island cruise, fjord voyage, cruise package, shore tour / all-inclusive, balcony, mediterranean, ten-night
Travel > Activities: city tour, cooking class, museum pass, kayak trip, theme park ticket / guided, skip-the-line, small-group, sunset
Education > Languages: spanish course, english tutor, vocabulary app, french lessons, phrasebook / conversational, beginner, certified, bite-size
Education > Coding: python bootcamp, web course, data science track, coding kit, algorithm class / hands-on, project-based, self-paced, career-ready
Education > Music: guitar lessons, piano app, singing course, drum kit, ukulele set / step-by-step, song-based, acoustic, live-coached
Education > Test Prep: entrance exam prep, ielts course, maths drills, mock exam, study planner / adaptive, score-boosting, timed, intensive
Family > Baby: pram, nappies, baby monitor, bottle set, car seat / hypoallergenic, newborn, isofix, leak-proof
Family > Toys: building blocks, plush toy, train set, board game, doll house / wooden, stem, glow-in-the-dark, collectable
Family > Pets: dog food, cat litter, scratching post, dog lead, aquarium / grain-free, clumping, chew-proof, vet-approved
Family > Books: picture book, crime novel, cookbook, audiobook, comic album / bestselling, illustrated, prize-winning, bedtime
Services > Fitness Studios: gym membership, pilates class, boxing session, personal trainer, spin studio / first-class-free, neighbourhood, 24-hour, no-contract
Services > Restaurants: sushi bar, brunch spot, pizza place, tapas evening, burger joint / two-for-one, family-run, rooftop, late-night
Services > Beauty Salons: haircut, manicure, massage, facial, brow styling / walk-in, organic, award, couples
Services > Home Repair: plumber, electrician, house cleaning, painter, locksmith / licensed, fixed-price, same-hour, insured
"""  # noqa: E501

STYLES = (
    ("minimal", "clean", "simple", "understated"),
    ("playful", "colourful", "fun", "quirky"),
    ("luxurious", "exclusive", "refined", "elegant"),
    ("eco", "sustainable", "recycled", "organic-minded"),
    ("sporty", "dynamic", "energetic", "active"),
    ("vintage", "classic", "heritage", "retro"),
    ("smart", "connected", "innovative", "next-gen"),
    ("handmade", "artisan", "crafted", "bespoke"),
)
PRICE_TIERS = ("bargain", "affordable", "mid-range", "upmarket", "top-of-the-range")
FILLER = (
    "new", "season", "today", "offer", "discover", "now", "made", "everyday", "favourite", "choice", "best", "ideal",
    "quality", "gift", "delivery", "limited", "original", "love", "ready", "perfect",
)  # fmt: skip
_ONSETS = ("b", "br", "d", "f", "gl", "h", "k", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "tr", "v", "w", "z")
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "eo", "io")
_CODAS = ("", "n", "r", "l", "x", "s", "nd", "th")


@dataclass(frozen=True)
class Topic:
    """A topic of the market: its place and its words."""

    department: str
    name: str
    products: tuple[str, ...]
    attributes: tuple[str, ...]


def _parse(line: str) -> Topic:
    place, words = line.split(": ")
    department, name = place.split(" > ")
    products, attributes = words.split(" / ")
    return Topic(department, name, tuple(products.split(", ")), tuple(attributes.split(", ")))


TOPICS = tuple(_parse(line) for line in _TOPICS.strip().split("\n"))
DEPARTMENT_SIZE = 4


def related_topics(topic: int) -> list[int]:
    """Return the topics that interest in `topic` leads to: the rest of its department and the next one's first."""
    first = topic - topic % DEPARTMENT_SIZE
    department = [other for other in range(first, first + DEPARTMENT_SIZE) if other != topic]
    return [*department, (first + DEPARTMENT_SIZE) % len(TOPICS)]


def brand_names(count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` different invented brand names.

    Raises:
        ValueError: More than a third of all names are asked for, of which they could not be drawn by lot in good time.
    """
    most = (len(_ONSETS) * len(_NUCLEI)) ** 2 * len(_CODAS) // 3
    if count > most:
        raise ValueError(f"count is {count}: give at most {most} brands, by fewer accounts")
    names: dict[str, None] = {}
    while len(names) < count:
        open_syllables = [str(rng.choice(_ONSETS)) + str(rng.choice(_NUCLEI)) for _ in range(2)]
        names[("".join(open_syllables) + str(rng.choice(_CODAS))).capitalize()] = None
    return list(names)
