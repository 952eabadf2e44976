"""tools/simulate_pool.py: bytes that the cache counts too, and pools that are kept to. Called with ROOT."""
import os
import sys
import unittest

ROOT = sys.argv.pop(1)
sys.path.insert(0, os.path.join(ROOT, "tools"))
import simulate_pool  # noqa: E402

MODEL = os.path.join(ROOT, "models", "longcot-10m")
STEPS = {"base": 4e-4, "request": 3e-5, "prefill": 1e-5, "byte": {"16": 7e-11, "8": 9e-11, "4": 1.5e-10, "2": 1.5e-10}}
LENGTHS = [[150 + 10 * (i % 7), 300 + 170 * (i % 11)] for i in range(40)] + [[200, 9000]]


class SimulatePool(unittest.TestCase):
    def run_it(self, pool, target, floor, **more):
        return simulate_pool.simulate(simulate_pool.Shape(MODEL), STEPS, LENGTHS, pool, target, floor, **more)

    def test_bytes_are_those_of_pmkvq_inspect(self):
        """12 blocks, 1 head of 128: 4,096 tokens take 24 MiB at 16 bits and the sink."""
        shape = simulate_pool.Shape(MODEL)
        self.assertEqual(shape.bytes_at(4096, 16), 32 * 2 * 12 * 128 * 128 * 2 + 2 * 12 * 128 * 2)
        self.assertLess(shape.bytes_at(4096, 4), shape.bytes_at(4096, 8))

    def test_a_tight_pool_is_kept_to_and_loses_nothing(self):
        ample = self.run_it(1 << 40, 16, 16)
        self.assertEqual((ample["answered"], ample["cut"], ample["bits"], ample["halved"]), (41, 1, 16, 0))
        tight = self.run_it(int(0.4 * ample["peak"]), 8, 4)
        self.assertLessEqual(tight["peak"], tight["pool"])
        self.assertEqual((tight["answered"], tight["cut"], tight["preempted"]), (41, 1, 0))
        self.assertTrue(4 <= tight["bits"] < 16)
        limited = self.run_it(1 << 40, 8, 4, read_limit=1)
        self.assertTrue(8 <= limited["bits"] < 10)
        self.assertGreater(limited["per_minute"], ample["per_minute"])


if __name__ == "__main__":
    unittest.main()
