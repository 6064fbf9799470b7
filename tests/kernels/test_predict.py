"""The model of a GPU: what is read from machine code that is written here, and what follows from it, worked out by hand."""
import pytest

from kernels import predict, sass

LOOP = [  # address, name, operands
    (0x00, "LDG", ".E.128 R4, desc[UR4][R2.64]"),
    (0x10, "LDGSTS", ".E.BYPASS.128 [R3], desc[UR4][R2.64], P0"),
    (0x20, "LDGDEPBAR", ""),
    (0x30, "DEPBAR", ".LE SB0, 0x3"),                            # the loop begins
    (0x40, "BAR", ".SYNC.DEFER_BLOCKING 0x0"),
    (0x50, "HGMMA", ".64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0"),
    (0x60, "WARPGROUP", ".DEPBAR.LE gsb0, 0x0"),
    (0x70, "LDGSTS", ".E.BYPASS.128 [R3], desc[UR4][R2.64], P0"),
    (0x80, "LDGDEPBAR", ""),
    (0x90, "LDGSTS", ".E [R3+0x800], desc[UR4][R2.64], P0"),
    (0xa0, "LDGDEPBAR", ""),
    (0xb0, "STG", ".E.64 desc[UR4][R2.64], R8"),
    (0xc0, "BRA", " 0x30"),
    (0xd0, "DEPBAR", ".LE SB0, 0x0"),
    (0xe0, "BRA", " 0xe0"),
]


def test_what_is_read_from_a_loop():
    assert sass.hot(LOOP) == {
        "instructions": 10, "loads": 20, "stores": 8, "load_width": 16, "store_width": 8, "multiplied": 2 * 64 * 128 * 16 // 4,
        "ahead": 1, "stops": 0, "matrix_waits": 1, "barriers": 1}    # of three groups that may be pending, two are an iteration's


def test_copies_that_are_waited_for_at_once_are_not_ahead():
    hot = sass.hot([(at, name, rest.replace("0x3", "0x0") if name == "DEPBAR" else rest) for at, name, rest in LOOP])
    assert (hot["ahead"], hot["stops"]) == (0, 1)


def test_a_kernel_without_a_loop_is_all_hot():
    hot = sass.hot([one for one in LOOP if one[:2] != (0xc0, "BRA")])
    assert (hot["instructions"], hot["loads"]) == (14, 16 + 16 + 16 + 4)


def test_stops_for_memory():
    load, use = "LDG", "FADD"
    both = [(0, load, ".E.128 R4, desc[UR4][R2.64]"), (1, load, ".E R8, desc[UR4][R2.64]"), (2, use, " R1, R7, R7"),
            (3, use, " R1, R8, R8")]
    assert sass.stops(both) == 1                                 # R7 belongs to the first load; by then R8 is there too
    assert sass.stops([both[0], both[2], both[1], both[3]]) == 2  # the second is asked for too late
    assert sass.stops([both[0], (1, load, ".E R9, desc[UR4][R4.64]"), (2, use, " R1, R9, R9")]) == 2  # an address that is loaded
    assert sass.stops([both[0], (1, use, " R1, R2, R3")]) == 0


def found(**changes):
    """A kernel of 8 warps whose loop of 100 instructions reads 16 bytes per thread and writes 16."""
    hot = {"instructions": 100, "loads": 16, "stores": 16, "multiplied": 0, "ahead": 0, "stops": 1}
    return {"programs": 132, "options": {"num_warps": 8}, "registers": 32, "shared": 0, "instructions": 200, "hot": hot | changes}


def test_programs_on_a_multiprocessor():
    one = found()
    assert predict.resident(one) == 8                            # 64 warps
    assert predict.resident(one | {"registers": 81}) == 2        # 88 x 256 of 65536: 2.9 times
    assert predict.resident(one | {"shared": 77_000}) == 2       # a third would fit, but for the 1 KB that CUDA takes
    assert predict.resident(one | {"options": {"num_warps": 1}}) == 32


def test_the_four_times():
    """A loop of 1000 iterations in each of 132 programs: 8 KB moved and 100 x 8 instructions of a warp in each."""
    size, cycle = 132 * 1000 * 8192, 1 / predict.CLOCK
    got = predict.predict(found(), size, bandwidth=4e12)
    own = 100 * 2 * cycle
    assert got.resident == 1 and got.limit == "latency"
    assert got.times["bytes"] == pytest.approx(size / 4e12)
    assert got.times["issue"] == pytest.approx(8 * (100 * 1000 + 100) / 4 * cycle)
    assert got.times["matrix"] == 0
    assert got.times["latency"] == pytest.approx(1000 * (1e-6 + own))
    assert got.seconds == got.times["latency"] + predict.START
    assert got.in_flight == 4096 and got.instructions == 132 * 256 * (100 * 1000 + 100)
    ahead = predict.predict(found(ahead=3, stops=0), size, bandwidth=4e12)
    assert ahead.times["latency"] == pytest.approx(1000 * (1e-6 + own) / 4) and ahead.in_flight == 4 * 4096
    hidden = predict.predict(found(ahead=99, stops=0), size, bandwidth=4e12)
    assert hidden.times["latency"] == pytest.approx(1000 * own)  # never faster than it computes
    assert predict.predict(found(stops=3), size).times["latency"] == pytest.approx(1000 * (3e-6 + own))
    small = predict.predict(found() | {"options": {"num_warps": 4}}, size / 2)
    assert small.times["latency"] == pytest.approx(1000 * (1e-6 + own))  # half as many warps do not make a warp faster
    waves = predict.predict(found() | {"programs": 3 * 8 * 132}, 3 * 8 * size)
    assert waves.resident == 8 and waves.times["latency"] == pytest.approx(3000 * (1e-6 + own))
    assert predict.predict(found() | {"programs": 1}, size / 132).times["latency"] == pytest.approx(1000 * (1e-6 + own))


def test_little_s_law():
    """With bandwidth x LATENCY bytes under way and no work, memory is just busy: latency and bytes take the same time."""
    bandwidth = 132 * 8 * 4096 / predict.LATENCY                 # 8 programs of 4 KB on each multiprocessor
    one = found(stores=0, instructions=0)
    got = predict.predict(one | {"programs": 132 * 8}, 132 * 8 * 4096 * 50, bandwidth=bandwidth)
    assert got.resident * 4096 == got.in_flight == bandwidth * predict.LATENCY / 132
    assert got.times["latency"] == pytest.approx(got.times["bytes"])


def test_matrix_units():
    """A program alone on its multiprocessor waits for its products, and they wait for it."""
    one = found(multiplied=2**20, ahead=1, stops=0)
    flops = 132 * 100 * 8 * 2**20                                # 100 iterations
    got = predict.predict(one, 1, flops, matmul=660e12)
    product = 8 * 2**20 / (660e12 / 132)
    assert got.times["matrix"] == pytest.approx(100 * product)
    assert got.times["latency"] == pytest.approx(100 * (product + 200 / predict.CLOCK)) and got.limit == "latency"
    two = predict.predict(one | {"programs": 264}, 1, 2 * flops, matmul=660e12)
    assert two.resident == 2 and two.limit == "matrix"           # two programs overlap


def test_shares_make_a_row():
    """Backward of attention is two kernels of three and four products, where five would do."""
    row = next(row for row in predict.ROWS if (row.op, row.direction) == ("attention", "backward"))
    rows = [found(multiplied=2**20) | {"example": row.example, "kernel": name} for name in row.kernels]
    other = [rows[0] | {"example": "another"}, rows[0] | {"kernel": "attention_forward_kernel"}]
    parts = predict.of_row(row, rows + other)
    assert [one["kernel"] for one, _ in parts] == list(row.kernels)
    flops = 5 * predict.N * predict.T * predict.D
    assert sum(part.times["matrix"] for _, part in parts) == pytest.approx(7 / 5 * flops / predict.MATMUL)
    norm = next(row for row in predict.ROWS if (row.op, row.direction) == ("add_rmsnorm", "forward"))
    with_options = [found() | {"example": norm.example, "kernel": "rmsnorm_forward_kernel", "bytes": 1,
                               "options": {"num_warps": 8, "RESIDUAL": residual}} for residual in (False, True)]
    assert [one["options"]["RESIDUAL"] for one, _ in predict.of_row(norm, with_options)] == [True]
