"""400 phone numbers, 400 numbers that are none, 400 IP addresses, 400 dotted numbers that are none, each in a sentence.

Rules are made looking at the first half of each list. The second half has other sentences and other spellings, and only
measures. Run as a program, it prints precision and recall, and with `--show` every mistake in the first half.
"""

import random
import sys
from collections.abc import Callable
from typing import NamedTuple

from vikhr_fast.corpus.scrub import scrub_text
from vikhr_fast.corpus.settings import ScrubStage

Value = Callable[[random.Random], str]
HALF = 200


class Case(NamedTuple):
    """A text, and what must become of it."""

    text: str
    scrubbed: str


class Quality(NamedTuple):
    """Of one kind of private string."""

    precision: float
    recall: float


class Half(NamedTuple):
    """Sentences with a place for a value, by what stands there."""

    private: dict[Value, list[str]]
    other: dict[Value, list[str]]


MOBILE = (
    "903",
    "905",
    "906",
    "909",
    "910",
    "912",
    "915",
    "916",
    "917",
    "921",
    "926",
    "950",
    "961",
    "981",
    "985",
    "999",
)
CITY = ("495", "499", "812", "343", "383", "846", "863", "831", "843", "351", "861", "391", "342", "473", "347")


def digits(pattern: str) -> Value:
    """Any digit for #, one from 1 to 9 for 1, the code of a mobile network for M, of a city for C."""

    def fill(chance: random.Random) -> str:
        made = ""
        for sign in pattern:
            if sign == "#":
                made += chance.choice("0123456789")
            elif sign == "1":
                made += chance.choice("123456789")
            elif sign in "MC":
                made += chance.choice(MOBILE if sign == "M" else CITY)
            else:
                made += sign
        return made

    return fill


def any_of(*patterns: str) -> Value:
    values = [digits(pattern) for pattern in patterns]
    return lambda chance: chance.choice(values)(chance)


def amount(separator: str, count: int = 10) -> Value:
    """A number of so many digits in groups of three."""

    def fill(chance: random.Random) -> str:
        return f"{chance.randrange(10 ** (count - 1), 10**count):,}".replace(",", separator)

    return fill


def dotted(*limits: int, start: int = 1) -> Value:
    return lambda chance: ".".join(str(chance.randint(start, limit)) for limit in limits)


def address(chance: random.Random) -> str:
    """A public IPv4 address as providers give them out."""
    first = chance.choice(
        (5, 31, 37, 46, 62, 77, 78, 81, 85, 87, 91, 93, 95, 109, 176, 178, 185, 188, 193, 212, 213, 217)
    )
    return ".".join(map(str, (first, chance.randint(1, 254), chance.randint(0, 255), chance.randint(1, 254))))


def ipv6(chance: random.Random) -> str:
    head = chance.choice(("2a02:6b8", "2a00:1450:4010", "2001:4860:4860", "2a03:2880:f12f"))
    return f"{head}:{chance.randrange(1, 0xFFFF):x}::{chance.randrange(1, 0xFFFF):x}"


# Codes that stand for a digit in `digits` are kept out of the literal parts: 1, M, C and #.
PHONES = (
    Half(
        private={
            any_of(
                "+7 (M) ###-##-##", "8 (M) ###-##-##", "+7 M ###-##-##", "8-M-###-##-##", "8 M ### ## ##", "+7M#######"
            ): [
                "Звоните: {}, спросить Анну.",
                "Продам диван, почти новый. {}",
                "тел. {}",
                "Мой номер {}, пишите в любое время.",
                "Запись на приём по телефону {} с 9 до 18.",
                "Ремонт квартир под ключ, {}, Сергей",
                "Для заказа такси: {}.",
                "Call me at {} after six.",
                "Водитель перезвонит с номера {} завтра",
            ],
            any_of(
                "8 (C) ###-##-##",
                "+7 (C) ###-##-##",
                "8(C)###-##-##",
                "(C) ###-##-##",
                "+7 C ### ## ##",
                "8-C-###-##-##",
            ): [
                "Тел./факс: {}",
                "Приёмная ректора: {}, кабинет 301.",
                "Адрес: ул. Ленина, 5. Телефон {}.",
                "Справки по тел.: {}",
                "Офис открыт ежедневно, {}, ждём вас!",
                "Phone: {}, Moscow office",
            ],
            any_of("8M#######", "7M#######", "M#######", "M ### ## ##", "M-###-##-##"): [
                "Телефон для связи {}",
                "тел {} Ольга",
                "WhatsApp: {}",
                "Звонить по номеру: моб. {}.",
            ],
            any_of("8M#######", "8-M-##-##-###", "8 M ## ## ###", "8 M #######", "8M-###-##-##"): [
                "Куплю гараж в центре {}",
                "{} Наталья, сдаю комнату",
                "Есть вопросы? Пишите: {}",
            ],
        },
        other={
            amount(" "): [
                "Выручка завода за год составила {} рублей.",
                "Прибыль — {} рубля, убыток вдвое меньше.",
                "Население Земли достигло {} человек.",
                "Бюджет области: {} руб.",
                "Активы банка выросли до {} и продолжают расти.",
                "The company earned {} dollars last year.",
                "Всего напечатано {} знаков.",
                "Долг составляет {} ₽.",
            ],
            amount("\u00a0"): ["Объём инвестиций — {} евро.", "Из них {} приходится на область."],
            amount(".", 10): ["Umsatz: {} Euro.", "Итого по смете {} тенге"],
            amount(" ", 11): ["Стоимость проекта оценивается в {} рублей.", "Капитализация превысила {} долларов США"],
            any_of("1#########"): [
                "ИНН {} указан в реестре.",
                "ООО «Ромашка», ИНН {}, КПП 770101001",
                "ИНН: {}",
                "ОКПО {}",
                "Заказ № {} передан в доставку.",
                "id {}",
            ],
            any_of("79#########", "89#########", "84#########"): [
                "заказ {} отправлен.",
                "Номер заказа: {}",
                "Трек-номер {} отслеживается на сайте.",
                "Лицевой счёт {}",
                "Артикул {}, в наличии",
                "Order {} has shipped.",
            ],
            any_of("8##-###-### ##", "79#-###-###-##", "1##-###-### ##"): [
                "СНИЛС {}",
                "Страховой номер {} выдан в 2003 году",
            ],
            any_of("1##########", "10277########1", "30977##########"): ["ОГРН {}", "ОГРНИП {} от 12.03.2009"],
            any_of("40702810#00000######", "408178109########1##", "301018104########225"): [
                "р/с {} в банке",
                "Счёт получателя {}",
            ],
            any_of("978-5-###-#####-#", "5-###-#####-#", "978-5-####-####-#"): [
                "ISBN {}",
                "Учебник для вузов, ISBN {}.",
            ],
            any_of("5#.######, 3#.######", "5#.####### 3#.#######", "8#.########"): [
                "Координаты: {}",
                "Точка {} на карте",
            ],
            any_of("12.03.20## 15", "2019-12-31 23", "3#.12.2020 - 31.01.2021"): ["Звонок поступил {} ч.", "Срок: {}"],
        },
    ),
    Half(
        private={
            any_of(
                "+7 M ### ## ##", "+7-M-###-##-##", "8 (M) ### ## ##", "+7(M)#######", "8 M ###-##-##", "+7 M ### ####"
            ): [
                "Контактное лицо Иван Петрович, {}.",
                "Напишите мне в вайбер {} или на почту",
                "Сдам квартиру без посредников. {}.",
                "Номер горячей линии — {}.",
                "Если нашли собаку, позвоните {}!",
                "Репетитор по математике ({}) готовит к ЕГЭ",
                "You can reach our driver on {}.",
                "Диспетчер: {}; круглосуточно",
                "Бронь столика {} и на сайте",
            ],
            any_of(
                "8 (C) ### ## ##",
                "+7 (C) ### ####",
                "8 C ###-##-##",
                "+7-C-###-##-##",
                "(C) ### ## ##",
                "8-800-###-##-##",
            ): [
                "Администрация района, {}, приём по средам",
                "Факс {}",
                "Регистратура поликлиники: {}.",
                "Единый номер {} работает без выходных.",
                "Редакция газеты «Заря», т. {}",
                "Fax: {}",
            ],
            any_of("M#######", "8M#######", "+7M#######", "M ###-##-##", "M ### ####"): [
                "Моб.: {}",
                "Контактный телефон: {}, Марина",
                "Позвонить можно по телефону {} вечером",
                "Viber/Telegram {}",
            ],
            any_of("8M#######", "8-M-#######", "8 M ### ####", "8M ### ## ##", "8-M-###-####"): [
                "Отдам котят в добрые руки, {}",
                "Света {} до 22:00",
                "Вывоз мусора недорого {}.",
            ],
        },
        other={
            amount(" "): [
                "Чистая прибыль концерна достигла {} рублей за квартал.",
                "В мире живёт {} людей.",
                "Общая площадь равна {} м².",
                "Расстояние составляет {} км.",
                "Сумма контракта {} руб. 00 коп.",
                "Просмотров: {}",
                "There are {} people on Earth.",
                "Налог в размере {} уплачен полностью.",
            ],
            amount("\u202f"): ["Le budget est de {} euros.", "Капитал фонда — {} долл."],
            amount(".", 10): ["Einwohner: {}", "Доход {} иен за прошлый год"],
            amount("\u00a0", 11): ["Госдолг превысил {} рублей", "Расходы составили {}, доходы меньше."],
            any_of("1#########"): [
                "Реквизиты: ИНН/КПП {}/770201001.",
                "плательщик с ИНН {} снят с учёта",
                "Идентификационный номер налогоплательщика {}",
                "Код ОКПО: {}",
                "Накладная {} от 5 мая",
                "user_id={}",
            ],
            any_of("79#########", "89#########", "83#########"): [
                "Посылка {} прибыла в сортировочный центр.",
                "Договор № {} расторгнут",
                "Штрихкод {} не читается",
                "Invoice {} is overdue.",
                "Заявка {} принята в работу",
                "Полис ОМС {}",
            ],
            any_of("89#-###-### ##", "7##-###-### ##", "8##-###-###-##"): ["СНИЛС: {}, Иванова", "№ {} (СНИЛС)"],
            any_of("1027700######", "304770000######", "8#############"): ["ОГРН: {}", "Регистрационный номер {}"],
            any_of("40817810#00000######", "4230181065########44", "044525###"): ["расчётный счёт {}", "БИК {}"],
            any_of("978-5-##-######-#", "8-###-#####-#", "979-1-###-#####-#"): ["Тираж 3000 экз. ISBN {}", "isbn: {}"],
            any_of("4#.#######, 13#.######", "6#.###### 8#.######", "9#.########"): [
                "lat/lon {}",
                "Широта и долгота: {}",
            ],
            any_of("01.02.20## 10", "31-12-2020 23", "8.03.2021 - 10.03.2021"): [
                "Телефонный опрос прошёл {} ч.",
                "Период {}",
            ],
        },
    ),
)

ADDRESSES = (
    Half(
        private={
            address: [
                "Вход с адреса {} заблокирован.",
                "Сервер {} не отвечает",
                "IP {}",
                "ping {} -t",
                "Подключился с {} и сразу вышел.",
                "http://{}/admin",
                '{} - - [12/Mar/2021:10:00:00 +0300] "GET / HTTP/1.1" 200',
                "Участник {} удалил раздел статьи.",
                "Failed password for root from {} port 22",
                "ssh root@{}",
                "Сайт переехал на {}.",
                "host={};user=app",
                "Наш айпи: {}, проверьте",
                "{}",
                "Игровой сервер: {}:27015",
            ],
            ipv6: ["Адрес {} принадлежит провайдеру", "inet6 {} scope global"],
            dotted(31, 9, 9, 9): ["IP-адрес {}", "connect to {}:8080", "DNS-сервер {} недоступен"],
        },
        other={
            dotted(12, 12, 12, 12): [
                "пункт {} настоящего документа",
                "См. п. {} договора.",
                "раздел {} приложения",
                "В соответствии с пп. {} и 4.5 правил",
                "статья {} устава",
                "рис. {}",
                "Таблица {}. Состав сплава",
                "see section {} of the manual",
                "{} Общие положения",
                "{}. Порядок приёмки работ",
                "требования пунктов 2.1.3.4, {} и 2.1.4.1",
                "§ {}",
                "Глава {} посвящена сверлению",
            ],
            dotted(99, 9, 30, 99): [
                "Установите прошивку {}, затем перезагрузите.",
                "версия {}",
                "Версия драйвера {} устарела",
                "обновление {} исправляет ошибки",
                "v{}",
                "version {} released",
                "сборка {}",
                "Release {} is out.",
                "ядро Linux {}",
                "Chrome/{} Safari/537.36",
            ],
            lambda chance: f"{chance.randint(60, 140)}.0.0.0": [
                "браузер Chrome/{}.",
                "Firefox {}",
                "Opera {}, Windows",
            ],
            any_of("12.03.202#.5", "0#.0#.1#.2#", "1#.##.20##.1", "1##.3##.4##.5##", "1.2.3.4.5", "300.1.1.1"): [
                "от {}",
                "код {}",
                "{}",
            ],
        },
    ),
    Half(
        private={
            address: [
                "Атака велась с IP-адреса {}.",
                "Хост {} недоступен вторые сутки",
                "Мой ip — {}",
                "traceroute to {}, 30 hops max",
                "Зашли под моим паролем, {}, вчера ночью.",
                "https://{}:8443/login",
                "X-Forwarded-For: {}",
                "Анонимный правщик {} вернул текст.",
                "Connection from {} closed",
                "scp file user@{}:/tmp",
                "Прокси: {} порт 3128",
                'remote_addr="{}"',
                "Забанен ({}) за спам",
                "2021-03-12 10:00:01 {} GET /index.php",
                "Подсеть {}/24",
            ],
            ipv6: ["ping6 {}", "Забанен {} навсегда"],
            dotted(31, 9, 9, 9): ["адрес сервера: {}", "tcp://{}:443", "gateway {}"],
        },
        other={
            dotted(15, 15, 15, 15): [
                "подпункт {} пункта 3",
                "согласно пункту {} регламента",
                "подраздел {} отчёта",
                "Приложение {}",
                "Рисунок {} — схема узла",
                "табл. {}",
                "clause {} of the agreement",
                "{} Требования безопасности",
                "{}. Испытания",
                "в пунктах {}–8.9.1.2 описано",
                "Упражнение {}",
                "параграф {} учебника",
                "Fig. {} shows the unit.",
            ],
            dotted(99, 9, 40, 99): [
                "После прошивки {} телефон завис.",
                "Обновился до версии {} вчера",
                "драйвер NVIDIA {}",
                "патч {} вышел",
                "ver. {}",
                "Upgrade to {} fixes it.",
                "билд {}",
                "firmware {}",
                "kernel {} panics",
                "YaBrowser/{} Yowser/2.5",
            ],
            lambda chance: f"{chance.randint(60, 140)}.0.0.0": ["Edg/{}", "Chromium {}", "Vivaldi {} для Windows"],
            any_of("12.3.19##.5", "0#.1#.0#.1#", "3#.0#.2021.2", "256.1.2.3", "1.3.6.1.4.1.9", "999.#.#.#"): [
                "за {}",
                "шифр {}",
                "({})",
            ],
        },
    ),
)

LISTS = {"phone": PHONES, "ip": ADDRESSES}


def pairs_of_phones(half: int, chance: random.Random) -> Case:
    """Two numbers with a space between them."""
    pattern = (
        ("8 M ### ## ##", "+7 M ###-##-##", "8-M-###-##-##"),
        ("8 (M) ###-##-##", "+7 M ### ## ##", "8 M ###-##-##"),
    )
    values = [any_of(*pattern[half])(chance) for _ in range(2)]
    sentence = (("Тел. {} {}", "Пишите {} {} Олег"), ("Звоните {} {}!", "Мастер: {} {}"))[half]
    chosen = chance.choice(sentence)
    return Case(chosen.format(*values), chosen.format("[PHONE]", "[PHONE]"))


def cases(kind: str, half: int) -> tuple[list[Case], list[Case]]:
    """Those with a private string, and those with something like it."""
    chance = random.Random(f"{kind} {half}")
    found: list[list[Case]] = []
    for group, tag in zip(LISTS[kind][half], (f"[{kind.upper()}]", None), strict=True):
        sentences = [(value, sentence) for value, own in group.items() for sentence in own]
        made = []
        for number in range(HALF):
            if kind == "phone" and tag and number % 20 == 0:
                made.append(pairs_of_phones(half, chance))
                continue
            value, sentence = sentences[number % len(sentences)]
            filled = value(chance)
            text = sentence.format(filled)
            made.append(Case(text, sentence.format(tag) if tag else text))
        found.append(made)
    return found[0], found[1]


def mistakes(kind: str, half: int) -> tuple[list[Case], list[Case]]:
    """Private strings that were not replaced as they should be, and other ones that were replaced; with what came."""
    settings = ScrubStage(kinds=(kind,))  # type: ignore[arg-type]
    private, other = (
        [Case(case.text, came) for case in own if (came := scrub_text(case.text, settings)[0]) != case.scrubbed]
        for own in cases(kind, half)
    )
    return private, other


def quality(kind: str, half: int) -> Quality:
    """Precision and recall on one half."""
    missed, wrong = map(len, mistakes(kind, half))
    return Quality((HALF - missed) / (HALF - missed + wrong), (HALF - missed) / HALF)


def main() -> None:
    for kind in LISTS:
        for half, name in enumerate(("rules made on", "held out")):
            own = quality(kind, half)
            print(f"{kind}, {name}: precision {own.precision:.3f}, recall {own.recall:.3f}")
            if "--show" in sys.argv and half == 0:
                for missed_or_wrong in mistakes(kind, half):
                    print(*(f"  {case.text!r} -> {case.scrubbed!r}" for case in missed_or_wrong), sep="\n")


if __name__ == "__main__":
    main()
