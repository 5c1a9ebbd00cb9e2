"""What the bank's speakers say: word lists of our own, and sentences drawn from them.

English sentences have a grammar; those of the other languages are words in a row, which an engine
speaks with all of the language's phones, and that is all they are for. A sentence belongs to one
split by its hash, so that no sentence of the test split is in the training split.
"""

import hashlib

import numpy as np

from data_pipelines.record import SPLITS

_ENGLISH = {
    "who": "my father|her mother|the baker|our neighbour|a young farmer|the blue bird|every pupil|the old judge"
    "|their uncle|this painter|the shy girl|your brother|a thin boy|the whole family|some people|both of them",
    "does": "bought|found|wrapped|moved|painted|forgot|measured|carried|shared|opened|fixed|chose|described|watched"
    "|believes in|laughed about|dropped|borrowed|saves|remembers|played with|asked for|pushed|washed",
    "what": "five warm jackets|a heavy box|the broken mirror|a cup of thick soup|seven apples|the garden gate"
    "|an ugly photograph|that empty bottle|some fresh bread|the purple umbrella|two pairs of shoes|a map of Europe"
    "|one more page|the village clock|cheap yellow paper|a pleasant voice|all the vegetables|the measure of joy",
    "where": "near the river|above the bridge|before breakfast|in the bath|on the other beach|after school"
    "|by the open window|at half past five|under the maple tree|without much hope|from time to time"
    "|for the very first time|during the visit|behind the church|over there|among good friends",
    "joined": "and|but|because|while|so|although|before|if",
    "short": "yes|no|right|okay|oh|really|sure|well|maybe|fine|of course|I see|good|true|exactly|oh boy|perhaps",
}

# Fifty or so everyday words each; the rare phones of a language are among them.
_LISTS = {
    "de": "mein Vater kauft fünf warme blaue Jacken und das Pferd bleibt vor dem alten Haus weil wir morgen früh"
    " Äpfel Brot Butter Pfeffer schöne Bücher junge Mädchen Köpfe über Wasser fliegen sprechen Bäume offen immer"
    " wohl zwischen Zeit gut auch nicht Übung Freude Mond Berg Papier Feuer Eule möchte",
    "fr-fr": "mon père achète un bon pain blanc et la jeune fille parle avec vous devant le petit pont parce que"
    " demain matin nous buvons du vin rouge sous un arbre vert jamais peut-être beaucoup de feuilles bleues"
    " montagne famille heureux soeur chambre ouvre porte vingt huit fois lune peur",
    "es": "mi padre compra cinco libros buenos y la niña habla con el hombre viejo porque mañana vamos a ver"
    " la plaza grande agua fuego barco puente verde amarillo jugar perro caballo voz ciudad pueblo mucho también"
    " nunca siempre feliz abrir boca familia ventana lluvia queso",
    "it": "mio padre compra cinque mele fresche e la bambina parla piano con il vecchio maestro perché domani"
    " andiamo al mare buono bello giallo foglia famiglia chiave ghiaccio bottiglia uovo vino pane fuoco gatto"
    " sempre forse mai sopra il ponte pioggia zucchero sbaglio voce",
    "pt-br": "meu pai comprou cinco livros bons e a menina fala com o velho amigo porque amanhã vamos ver o mar"
    " pão mãe coração bom vinho folha chuva janela peixe manga azul verde ontem também nunca feliz abrir porta"
    " ponte família boca fogo avó",
    "nl": "mijn vader koopt vijf warme broden en het kleine meisje praat met de oude buurman omdat wij morgen"
    " vroeg naar buiten gaan mooi blauw geel huis vuur water boom brug vogel schip deur open mond altijd misschien"
    " nooit vrij bij leuk goed uur",
    "sv": "min pappa köper fem varma bröd och den lilla flickan pratar med en gammal granne för att vi ska gå ut"
    " i morgon blå gul hus vatten eld båt bro fågel sjö dörr öppen mun alltid kanske aldrig fri bra mycket själv"
    " vit hund berg",
    "pl": "mój ojciec kupuje pięć książek i mała dziewczynka mówi powoli do starego sąsiada bo jutro pójdziemy nad"
    " morze woda ogień most ptak biały żółty drzwi usta zawsze może nigdy wolny bardzo dobrze chleb masło miasto"
    " wiatr pies góra zima",
    "cs": "můj otec kupuje pět knih a malá holka mluví pomalu se starým sousedem protože zítra půjdeme k moři voda"
    " oheň most pták bílý žlutý dveře ústa vždycky možná nikdy volný velmi dobře chléb máslo město vítr pes hora"
    " řeka ruka měsíc",
    "fi": "minun isäni ostaa viisi kirjaa ja pieni tyttö puhuu hitaasti vanhan naapurin kanssa koska huomenna"
    " menemme meren rannalle vesi tuli silta lintu valkoinen keltainen ovi suu aina ehkä vapaa hyvin leipä voi"
    " kaupunki tuuli vuori yö filmi bussi",
    "hu": "az apám öt könyvet vesz és a kislány lassan beszél az öreg szomszéddal mert holnap megyünk a tóhoz víz"
    " tűz híd madár fehér sárga ajtó száj mindig talán soha szabad nagyon jó kenyér vaj város szél kutya hegy fű"
    " bögre meleg",
    "tr": "babam beş yeni kitap aldı ve küçük kız yaşlı komşuyla yavaş konuşuyor çünkü yarın denize gideceğiz su"
    " ateş köprü kuş beyaz sarı kapı ağız her zaman belki hiç özgür çok iyi ekmek tereyağı şehir rüzgar köpek dağ"
    " mavi fındık",
    "ru": "мой папа купил пять хороших книг и маленькая девочка медленно говорит со старым соседом потому что завтра"
    " мы пойдём к морю вода огонь мост птица белый жёлтый дверь рот всегда может быть никогда хлеб масло город"
    " ветер собака гора",
}
LANGUAGES = ("en-us", "en-gb", *_LISTS)
_SHORT = {
    "de": "ja|nein|genau|gut|ach so|klar|stimmt|wirklich|na ja|aha|eben|schön|vielleicht|doch",
    "fr-fr": "oui|non|bien sûr|d'accord|ah bon|voilà|c'est vrai|peut-être|bon|exactement|tiens|mais oui|ben oui",
    "es": "sí|no|claro|vale|bueno|ya|verdad|ah|muy bien|de veras|puede ser|eso es|por supuesto|bien",
    "it": "sì|no|certo|va bene|ah|davvero|ecco|forse|esatto|bene|ma certo|ho capito|appunto",
    "pt-br": "sim|não|claro|tá bom|é|verdade|pois é|talvez|isso|bom|com certeza|entendi|muito bem",
    "nl": "ja|nee|precies|goed|ach|zeker|echt|misschien|klopt|oké|mooi|nou ja|natuurlijk",
    "sv": "ja|nej|precis|bra|jaha|visst|verkligen|kanske|jo|just det|fint|såklart",
    "pl": "tak|nie|właśnie|dobrze|no tak|jasne|naprawdę|może|aha|pewnie|super|oczywiście",
    "cs": "ano|ne|přesně|dobře|no jo|jasně|opravdu|možná|aha|určitě|fajn|samozřejmě",
    "fi": "joo|ei|niin|hyvä|aivan|kyllä|ihanko|ehkä|ai|selvä|totta|tietysti",
    "hu": "igen|nem|persze|jó|aha|pontosan|tényleg|talán|na jó|értem|biztos|így van",
    "tr": "evet|hayır|tabii|iyi|aa|tamam|gerçekten|belki|peki|öyle|doğru|anladım",
    "ru": "да|нет|конечно|хорошо|ага|точно|правда|может быть|ну да|понятно|ладно|ясно",
}


def split_of(text: str) -> str:
    """Returns the one split whose speakers may say a text: test and val have two tenths each."""
    tenth = hashlib.sha256(text.encode()).digest()[0] % 10
    return SPLITS[0 if tenth < 6 else 1 if tenth < 8 else 2]


def sentence(language: str, split: str, num_words: int, rng: np.random.Generator) -> str:
    """Draws a sentence of a split in about `num_words` words; 0 draws a back-channel."""
    while True:
        text = _short(language, rng) if num_words == 0 else _sentence(language, num_words, rng)
        if split_of(text) == split:
            return text


def _short(language: str, rng: np.random.Generator) -> str:
    choices = _SHORT.get(language, _ENGLISH["short"]).split("|")
    return " ".join(choices[i] for i in rng.integers(len(choices), size=rng.integers(1, 3)))


def _sentence(language: str, num_words: int, rng: np.random.Generator) -> str:
    if language in _LISTS:
        words = _LISTS[language].split()
        return " ".join(words[i] for i in rng.integers(len(words), size=num_words))
    parts: list[str] = []
    while _num_words(parts) < num_words:
        for part in ("joined", "who", "does", "what", "where"):
            choices = _ENGLISH[part].split("|")
            if (parts or part != "joined") and _num_words(parts) < num_words:
                parts.append(choices[rng.integers(len(choices))])
    return " ".join(parts)


def _num_words(parts: list[str]) -> int:
    return sum(len(part.split()) for part in parts)
