from polopt.launch.hardware import tpu_chips


def test_chips_are_counted_and_googles_network_cards_are_not(tmp_path):
    cards = {
        "0000:00:04.0": ("0x1ae0", "0x0063"),  # TPU v5e
        "0000:00:05.0": ("0x1ae0", "0x0063"),
        "0000:00:06.0": ("0x1ae0", "0x0042"),  # gVNIC
        "0000:00:07.0": ("0x10de", "0x0063"),  # another maker's card of that number
    }
    for name, (vendor, device) in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "device").write_text(device + "\n")
    (tmp_path / "0000:00:08.0").mkdir()
    assert tpu_chips(tmp_path) == 2
    assert tpu_chips(tmp_path / "nothing") == 0
