"""The words that tasks are made of; the tokenizer is trained to hold most of them whole."""

_CLASSES = """
Account Actor Address Agent Album Animal Answer Apartment Apple Article Artist Asset Author Badge Bakery
Balance Band Bank Basket Battery Bill Bird Block Board Boat Book Bottle Box Branch Bridge Bucket Budget
Building Bus Button Cable Cache Camera Camp Car Card Cart Castle Cat Chair Chapter Chart City Client Clock
Cloud Club Coach Coin Company Contact Contract Cookie Country Course Crate Customer Dataset Deal Desk
Device Dish Doctor Document Dog Door Drawer Dress Driver Drone Email Employee Engine Event Exam Farm
Festival Field File Film Filter Fish Flight Flower Folder Forest Fruit Game Garage Garden Gate Gift Glass
Goal Grade Grant Group Guest Guitar Hall Harbor Hat Hospital Hotel House Image Invoice Island Item Jacket
Job Journal Key Kitchen Lake Lamp Laptop Lesson Letter Library License Light Loan Lock Machine Magazine
Manager Map Market Match Meal Medal Meeting Member Menu Message Meter Mirror Model Monitor Motor Mountain
Movie Museum Note Nurse Office Order Owner Package Page Painting Paper Parcel Park Partner Patient Payment
Pen Person Phone Photo Piano Pilot Plan Planet Plant Player Poem Policy Pool Post Printer Product Project
Pump Queue Radio Recipe Record Region Report Request Review River Road Robot Rocket Room Route Sale School
Screen Season Seat Sensor Server Session Shelf Ship Shirt Shop Signal Singer Song Speaker Sport Staff Star
Station Stock Store Storm Street Student Studio Table Tank Task Teacher Team Tent Test Ticket Tool Tower
Toy Track Trail Train Tree Trip Truck Tunnel User Valve Vehicle Vendor Video Village Visit Voice Vote
Wallet Watch Wheel Window Worker Writer Zone
"""

_FIELDS = """
age alias amount angle area author balance batch bonus brand bucket budget capacity category cause center
charge city code color comment cost count country course currency date day deadline degree delay
density depth device diet discount distance duration edition effect email energy engine error event extra
factor fee fine floor flow format frame fuel gender genre goal grade growth guest height hour image
income interest issue job kind label language latitude layer length level link list
location lock margin mass maker memory message meter method mileage minute mode model month mood
name nation note number offset option origin owner page parent path pattern payment period phase
phone place pitch plan points policy position power prefix pressure price priority process profit progress
queue quota radius random range rank rate rating ratio reason region rent result revenue review reward
risk role room route row salary scale schedule scope score season seat second sector serial series session
shape shift shop sign signal size skill slot source space speed stage stamp start state station status
step stock street style subject success sum supply symbol system target task tax team temperature
term text theme ticket time timer title token tone tool topic total track trade type unit usage user
value vendor version view voltage volume vote wage weight width window year zone
"""

_NAMES = """
Ada Adam Alan Alba Alex Alice Amir Amy Ana Andre Anna Anton Arthur Ben Bella Boris Bruno Carl Carla Carlos
Cecil Chen Clara Dan Daniel David Dora Edgar Elena Eli Ella Emil Emma Eric Erin Eva Felix Fiona Frank Fred
Gina Grace Greta Hana Hans Hassan Helen Henry Hugo Ida Igor Ines Irene Iris Ivan Ivy Jack Jane Jason Jean
Joan Joel John Jonas Jose Judy Julia Julian Karen Karl Kate Kevin Kim Kira Lara Laura Lea Leo Liam Lina
Lisa Lucas Lucy Luis Luna Maria Marco Mark Marta Martin Mary Max Maya Mia Mike Mila Mina Mona Nadia Nina
Noah Nora Olga Oliver Omar Oscar Otto Paul Paula Pedro Peter Petra Rachel Ravi Rita Robert Rosa Ruth Ryan
Sam Sara Sofia Simon Stella Sven Tara Theo Thomas Tim Tina Tom Uma Vera Victor Wanda Will Xavier Yara
Yusuf Zara Zoe
"""

_CITIES = """
Athens Berlin Bern Bogota Boston Cairo Chicago Dakar Dallas Delhi Denver Dublin Geneva Hanoi Havana
Helsinki Houston Istanbul Jakarta Kyiv Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Miami Milan
Montreal Moscow Mumbai Munich Nairobi Naples Oslo Paris Perth Porto Prague Quito Riga Rome Seattle Seoul
Sofia Stockholm Sydney Taipei Tallinn Tokyo Toronto Tunis Turin Vienna Vilnius Warsaw Zagreb Zurich
"""

_THINGS = """
acorn anchor apple arrow atlas autumn badge bag ball banana basil basket beach bean bear bell belt berry
bike bird blanket boat bone book boot bottle bowl branch bread brick bridge broom brush butter button
cabin cactus cake camel camera candle canoe canyon carpet carrot castle cedar chain chair chalk cheese
cherry circle cliff cloud clover coal coat cobra coffee comet copper coral corn cotton crane cream crown
crystal cup curtain daisy dawn deer desert diamond dolphin door dragon drum duck dust eagle earth east
ember engine falcon fan feather fence fern field fig finger fire flag flame flower flute forest fork fox
frog frost fruit galaxy garden gate ghost ginger glass globe goat gold grape grass green hammer harbor hat
hawk hazel heart hill honey horn horse ice ink iron island ivory jacket jade jar jelly jungle kettle key
kite kiwi knife ladder lake lamp lantern lava leaf lemon lily lime lion lizard lotus lunar magnet mango
maple marble meadow melon metal mint mirror moon moss moth mountain mouse nail needle nest night north
oak oasis ocean olive onion opal orange orbit owl paint palm panda paper parrot peach pear pearl pebble
pencil penguin pepper phone piano pillow pine planet plate plum pocket pond potato prairie prism pumpkin
purple puzzle quartz rabbit rain raven red ribbon rice ring river robin rock rocket roof rope rose ruby
sail salt sand saturn scarf sea seed shadow shell shield ship shoe silk silver sky snail snow soap sofa
south spark spice spider spoon spring squid star stone storm straw sugar summer sun swan sword tea temple
tent thorn thread tiger timber toast tomato torch tower train tree trumpet tulip tunnel turtle valley
vase velvet violet violin wagon walnut water wave west wheat wheel whale willow wind wine winter wolf wood
wool yarn yellow zebra zinc
"""

_TERMS = """
prefill decode attention token tokens cache KV memory bandwidth latency throughput batch batching continuous
block blocks paged PagedAttention RadixAttention prefix request requests scheduler server engine engines
inference model models weights quantisation precision speculative speculation draft target Medusa EAGLE
heads acceptance verify verification parallel tensor pipeline GPU CPU DGX Spark vLLM SGLang TensorRT LLM
llama cpp Ollama GGUF streaming event chunk TTFT TPOT ITL goodput roofline percentile load balancer health
check queue preemption eviction router replica container image port compute bound step sequence prompt
output input generation sampling greedy temperature softmax logits layer hidden hardware measure
"""

_CODE = """
class def self return import from if else for in not and or is None True False int str float bool list
dict print super init repr eq dataclass dataclasses argparse parser add argument parse args ArgumentParser
description default required help main type CREATE TABLE SELECT FROM WHERE INSERT INTO VALUES INTEGER TEXT
REAL PRIMARY KEY NOT NULL ORDER BY DESC ASC LIMIT AND true false null isinstance other object Write Python
with the fields named field method class called columns column rows row each list words numbers reverse
order sort count items item largest smallest JSON YAML CSV Markdown table query that value values keys
object objects function returns parameters script options option command line statement configuration
"""


def _list(text: str) -> list[str]:
    return list(dict.fromkeys(text.split()))


CLASSES = _list(_CLASSES)
FIELDS = _list(_FIELDS)
NAMES = _list(_NAMES)
CITIES = _list(_CITIES)
THINGS = _list(_THINGS)
TERMS = _list(_TERMS)
TABLES = [c.lower() + "s" for c in CLASSES if c[-1] not in "sxyh"]
CODE = _list(_CODE)
