import { expect, it } from "vitest";
import { curvesOf, drawCurves } from "./curves.ts";

const point = (step: number, train_loss: number | null, valid_loss: number | null) => ({
  step,
  train_loss,
  valid_loss,
  valid_mean_token_accuracy: null,
});
const drawn = (data: ReturnType<typeof point>[]) => drawCurves(curvesOf({ run_id: "r", data }), { columns: 60, coloured: false });

it("draws each curve within the terminal's width, and says a loss that was measured once", async () => {
  const lines = await drawn([point(1, 5, null), point(2, 4, null), point(3, 3.5, 4.25)]);
  expect(lines.join("\n")).toContain("training loss");
  expect(lines.filter((line) => line.includes("held-out loss"))).toEqual(["held-out loss: 4.250 at step 3"]);
  expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(60);
});

it("draws nothing of runs without a curve", async () => {
  expect(await drawn([])).toEqual([]);
  expect(await drawn([point(1, 5, null)])).toEqual(["training loss: 5.000 at step 1"]);
});
