# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Made-up names, addresses, dates, and what was bought for how much."""

import dataclasses

import numpy as np

from .chance import between, digits, often, pick, weighted, whole

_NAMES = (
    "TAN LIM LEE ONG CHONG WONG YONG HENG SENG GUAN HUAT WAH FATT KIM SOON AIK HOCK LIAN CHUAN "
    "HIN MAJU JAYA SRI INDAH PERMATA BINTANG MUTIARA SINAR CAHAYA MEWAH SETIA BERJAYA UTAMA "
    "NUSANTARA STAR GOLDEN SUN MOON CITY ROYAL UNITED GLOBAL PRIME FIRST MODERN FAMILY GREEN "
    "BLUE RED SUPER PACIFIC ORIENT EASTERN CENTRAL NATIONAL UNIVERSAL PERFECT HAPPY LUCKY "
    "DRAGON PHOENIX LOTUS"
).split()
_TRADES = (
    "TRADING,ENTERPRISE,HARDWARE,STATIONERY,BOOKSTORE,MINI MARKET,SUPERMARKET,RESTAURANT,"
    "RESTORAN,CAFE,BAKERY,PHARMACY,ELECTRICAL,MACHINERY,LIGHTING,AUTO PARTS,MOTOR,PETROLEUM,"
    "SERVICE STATION,FURNISHING,GIFTS & TOYS,SEAFOOD,FRESH MARKET,CASH & CARRY,"
    "TELECOMMUNICATION,HOME DECO,FLORIST,KOPITIAM,STEAMBOAT,NOODLE HOUSE,CONFECTIONERY,PARKING,"
    "DEPARTMENT STORE,SPORTS,OPTICAL,TEXTILE,MARKETING,INDUSTRIES,HOLDINGS,PLASTIC,"
    "PAPER PRODUCTS,PERNIAGAAN,KEDAI RUNCIT,PASARAYA,BIHUN"
).split(",")
_ENDS = {"SDN BHD": 6, "SDN. BHD.": 2, "(M) SDN BHD": 2, "S/B": 0.5, "": 3, "BHD": 0.7, "CO.": 0.5}
_ROADS = "JALAN,JLN,LORONG,LEBUH,PERSIARAN,JALAN".split(",")
_PLACES = (
    "TAMAN DAYA,TAMAN SRI MUDA,BANDAR BARU,SEKSYEN 7,BUKIT INDAH,PUSAT BANDAR,"
    "TAMAN PERINDUSTRIAN,KAWASAN INDUSTRI,DESA JAYA,PANDAN INDAH,TAMAN MEGAH,KOTA DAMAI,"
    "SUNGAI BESI,ULU TIRAM,BATU CAVES"
).split(",")
_TOWNS = (
    "JOHOR BAHRU,KUALA LUMPUR,PETALING JAYA,SHAH ALAM,KLANG,SUBANG JAYA,PUCHONG,CHERAS,AMPANG,"
    "KAJANG,SEREMBAN,IPOH,MELAKA,RAWANG,SETAPAK,KEPONG,SKUDAI,MASAI,BANGI,SEMENYIH,SELAYANG,"
    "GOMBAK"
).split(",")
_STATES = "SELANGOR,JOHOR,MALAYSIA,PERAK,PAHANG,PENANG,W.P. KL,SELANGOR DARUL EHSAN,".split(",")
_GOODS = (
    "PAPER PEN BATTERY CABLE SCREW NAIL PAINT BRUSH WATER TEA COFFEE RICE CHICKEN FISH EGG "
    "BREAD MILK SUGAR SALT SOAP BAG BOX CUP PLATE SPOON GLASS BOTTLE TAPE GLUE FILE CARD RING "
    "CHAIN WIRE PIPE VALVE LAMP BULB PLUG FAN SHIRT SHOES TOY CAKE NASI GORENG AYAM TEH TARIK "
    "ICE LEMON SOUP NOODLE ROTI CANAI KOPI MEE SET LUNCH BEEF PRAWN VEGE TOFU BIHUN KUEY TEOW "
    "LED SWITCH SOCKET HOSE CLIP PUMP FILTER OIL DIESEL RON95 WASHER BOLT NUT TIMBER CEMENT "
    "GLOVE MASK TISSUE SHAMPOO BISCUIT STRAWBERRY MANGO ORANGE CHEESE BUTTER CREAM JAM HONEY "
    "ENVELOPE STAPLER MARKER RIBBON BALLOON"
).split()
_SYLLABLES = (
    "BA BE BI BO CHA DA DE DO FA GA GO HA HI JA KA KE KO LA LE LI LO LU MA ME MI MO NA NE NI "
    "NO PA PE PI PO RA RE RI RO SA SE SI SO SU TA TE TI TO TU VA VE WA YA ZA ZO NG RN ST LL CK "
    "TH"
).split()
MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
_DATES = {
    "{d:02}/{m:02}/{y}": 52,
    "{d:02}-{m:02}-{s:02}": 12,
    "{d:02}-{m:02}-{y}": 12,
    "{d:02}/{m:02}/{s:02}": 10,
    "{d:02} {n} {y}": 5,
    "{d}/{m}/{y}": 2,
    "{d:02}.{m:02}.{y}": 2,
    "{d:02}-{n}-{y}": 2,
    "{d:02} {n} {s:02}": 1,
    "{d:02}/{n}/{y}": 1,
    "{y}-{m:02}-{d:02}": 1.5,
    "{n} {d:02}, {y}": 1,
}


def invented(rng: np.random.Generator) -> str:
    """A word that is in no dictionary."""
    return "".join(pick(rng, _SYLLABLES) for _ in range(whole(rng, 2, 4)))


def number(rng: np.random.Generator, fewest: int, most: int) -> str:
    """A string of some digits."""
    return digits(rng, whole(rng, fewest, most))


def _name(rng: np.random.Generator) -> str:
    return invented(rng) if often(rng, 0.45) else pick(rng, _NAMES)


def company(rng: np.random.Generator) -> str:
    """A company's name."""
    parts = [_name(rng) for _ in range(weighted(rng, {1: 2, 2: 5, 3: 2}))]
    if often(rng, 0.12):
        parts.insert(0, pick(rng, ("RESTORAN", "KEDAI", "SYARIKAT", "PASARAYA", "UNI", "MR.")))
    if often(rng, 0.8):
        parts.append(pick(rng, _TRADES))
    if often(rng, 0.06):
        parts.insert(1, "&")
    return " ".join([*parts, weighted(rng, _ENDS)]).strip()


def address(rng: np.random.Generator) -> list[str]:
    """An address, a line each."""
    number = pick(rng, ("NO. ", "NO ", "LOT ", "", "NO.", "UNIT ")) + str(whole(rng, 1, 199))
    if often(rng, 0.4):
        number += (
            pick(rng, ("-", ",", "&", "/")) + str(whole(rng, 1, 99)) + pick(rng, ("", "A", "G"))
        )
    road = f"{pick(rng, _ROADS)} {_name(rng)} {whole(rng, 1, 20)}" + pick(
        rng, ("", "/2", "/118B", "A")
    )
    town = f"{digits(rng, 5)} {pick(rng, _TOWNS)}"
    lines = [
        f"{number}, {road},",
        f"{pick(rng, _PLACES)},",
        f"{town}, {pick(rng, _STATES)}.".strip(", ."),
    ]
    if often(rng, 0.35):
        lines = [f"{lines[0]} {lines[1]}", lines[2]]
    if often(rng, 0.2):
        lines.insert(
            1, f"{_name(rng)} {pick(rng, ('MALL', 'PLAZA', 'COMPLEX', 'CENTRE', 'BUILDING'))},"
        )
    return lines


def company_number(rng: np.random.Generator) -> str:
    """A number of registration."""
    number = digits(rng, whole(rng, 5, 9)) + pick(rng, ("-", " ", "-")) + pick(rng, "ABDHKMPTUVWX")
    return pick(rng, ("({})", "({})", "{}", "CO. REG: {}", "(CO. NO. {})", "REG NO: {}")).format(
        number
    )


def telephone(rng: np.random.Generator) -> str:
    """Lines of telephone and fax."""
    number = f"0{whole(rng, 3, 9)}-{digits(rng, 7)}"
    text = pick(
        rng, ("TEL: {}", "TEL : {}", "Tel: {}", "PHONE {}", "TEL/FAX: {}", "H/P: {}", "T: {}")
    )
    return text.format(number) + (f" FAX: {number[:-3]}{digits(rng, 3)}" if often(rng, 0.3) else "")


def gst_number(rng: np.random.Generator) -> str:
    """A line with a tax number."""
    number = digits(rng, 12)
    form = ("GST ID: {}", "GST NO : {}", "(GST REG NO : {})", "GST ID NO: {}", "GST REG #{}")
    return pick(rng, form).format(number)


def date(rng: np.random.Generator) -> str:
    """A date in one of the ways of writing it."""
    day, month = whole(rng, 1, 31), whole(rng, 1, 12)
    year = whole(rng, 2016, 2018) if often(rng, 0.7) else whole(rng, 2005, 2026)
    name = MONTHS[month - 1] if often(rng, 0.4) else MONTHS[month - 1].title()
    return weighted(rng, _DATES).format(d=day, m=month, y=year, s=year % 100, n=name)


def clock(rng: np.random.Generator) -> str:
    """A time of day."""
    hour, minute, second = whole(rng, 0, 23), whole(rng, 0, 59), whole(rng, 0, 59)
    if often(rng, 0.35):
        half = pick(rng, ("PM", "pm", "AM")) if often(rng, 0.8) else ""
        tail = f":{second:02}" if often(rng, 0.7) else ""
        return f"{(hour - 1) % 12 + 1:02}:{minute:02}{tail} {half}".strip()
    return f"{hour:02}:{minute:02}" + (f":{second:02}" if often(rng, 0.6) else "")


def goods(rng: np.random.Generator) -> str:
    """What one may buy."""
    parts = [
        invented(rng) if often(rng, 0.25) else pick(rng, _GOODS) for _ in range(whole(rng, 1, 4))
    ]
    if often(rng, 0.3):
        parts.append(
            f"{whole(rng, 1, 500)}{pick(rng, ('G', 'ML', 'MM', 'PCS', 'KG', 'L', 'W', 'CM'))}"
        )
    return " ".join(parts)


@dataclasses.dataclass(frozen=True)
class Item:
    """Something bought: prices in cents."""

    name: str
    code: str
    count: int
    price: int

    @property
    def amount(self) -> int:
        """What all of it costs."""
        return self.count * self.price


@dataclasses.dataclass(frozen=True)
class Purchase:
    """What a receipt says, in cents.

    Attributes:
        items: What was bought.
        net: Before tax.
        tax: At 6%, or nothing.
        rounding: To five cents.
        total: What is paid.
        paid: What was handed over.
    """

    items: tuple[Item, ...]
    net: int
    tax: int
    rounding: int
    total: int
    paid: int


def _price(rng: np.random.Generator) -> int:
    cents = int(10 ** between(rng, 2.0, 3.45))
    return cents - cents % pick(rng, (1, 5, 10, 10, 50)) + pick(rng, (0, 0, 0, 90))


def purchase(rng: np.random.Generator, most: int = 12) -> Purchase:
    """Some goods and what they cost together."""
    items = []
    for _ in range(min(1 + int(rng.exponential(3.8)), most)):
        count = weighted(rng, {1: 7, 2: 2, 3: 0.8, whole(rng, 4, 30): 0.5})
        code = digits(rng, weighted(rng, {5: 1, 8: 1, 13: 2})) if often(rng, 0.7) else invented(rng)
        items.append(Item(name=goods(rng), code=code, count=count, price=_price(rng)))
    net = sum(item.amount for item in items)
    tax = round(net * 0.06) if often(rng, 0.5) else 0
    rounded = 5 * round((net + tax) / 5)
    note = pick(rng, (100, 500, 1000, 5000, 10000)) if often(rng, 0.65) else 1
    paid = -(-rounded // note) * note
    return Purchase(
        items=tuple(items),
        net=net,
        tax=tax,
        rounding=rounded - net - tax,
        total=rounded,
        paid=paid,
    )


def money(cents: int, commas: bool = True) -> str:
    """Cents as people write them."""
    text = f"{abs(cents) / 100:,.2f}" if commas else f"{abs(cents) / 100:.2f}"
    return f"-{text}" if cents < 0 else text
