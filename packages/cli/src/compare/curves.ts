/** Curves of runs: as characters for the terminal, and as SVG. */
import type { RunMetrics } from "@loraline/contracts";

/** A curve with its name: points of step and loss, by step. */
interface Curve {
  name: string;
  points: [step: number, loss: number][];
}

/** The curves of one run that have points: loss on the training rows, and on the held-out rows. */
export function curvesOf({ data }: RunMetrics, prefix = ""): Curve[] {
  const of = (name: string, key: "train_loss" | "valid_loss"): Curve => ({
    name: prefix + name,
    points: data.flatMap((point) => (point[key] === null ? [] : [[point.step, point[key]] as [number, number]])),
  });
  return [of("training loss", "train_loss"), of("held-out loss", "valid_loss")].filter(({ points }) => points.length > 0);
}

/** Most points of a curve on a terminal: more would only be drawn over each other. */
const mostPoints = 400;
const colors = ["ansiCyan", "ansiYellow", "ansiMagenta", "ansiGreen"] as const;

/** With colours one chart with all curves; without, where curves could not be told apart, one for each, at the same scale. */
export async function drawCurves(
  given: readonly Curve[],
  { columns, coloured }: { columns: number; coloured: boolean },
): Promise<string[]> {
  // One point is no curve: it is said.
  const said = given.flatMap(({ name, points: [only, ...more] }) =>
    only !== undefined && more.length === 0 ? [`${name}: ${only[1].toFixed(3)} at step ${only[0]}`] : [],
  );
  const curves = given.filter(({ points }) => points.length > 1).map(({ name, points }) => ({ name, points: thinned(points) }));
  if (curves.length === 0) return said;
  const { plot } = await import("simple-ascii-chart");
  const losses = curves.flatMap(({ points }) => points.map(([, loss]) => loss));
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const draw = (shown: readonly Curve[]): string => {
    const lines = shown.map(({ points }) => points);
    return plot(lines, {
      width: Math.max(20, Math.min(100, columns - 12)),
      height: 12,
      // A chart of one height has no scale.
      ...(low < high ? { yRange: [low, high] } : {}),
      customXAxisTicks: ticksOf(lines.flatMap((points) => points.map(([step]) => step))),
      formatter: (value, { axis }) => (axis === "y" ? value.toFixed(3) : Math.round(value)),
      ...(coloured
        ? { color: [...colors], legend: { position: "bottom", series: shown.map(({ name }) => name) } }
        : { title: shown[0]?.name ?? "" }),
    });
  };
  const charts = coloured ? [draw(curves)] : curves.map((curve) => draw([curve]));
  return [...charts.flatMap((chart) => chart.split("\n").map((line) => line.trimEnd())), ...said];
}

/** First and last step, and three between. */
function ticksOf(steps: readonly number[]): number[] {
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  return [...new Set([0, 0.25, 0.5, 0.75, 1].map((part) => Math.round(first + (last - first) * part)))];
}

/** Means over equal parts of the curve, each at its last step. */
function thinned(points: Curve["points"]): Curve["points"] {
  if (points.length <= mostPoints) return points;
  const size = Math.ceil(points.length / mostPoints);
  const means = Array.from({ length: Math.ceil(points.length / size) }, (_, part): [number, number] => {
    const slice = points.slice(part * size, (part + 1) * size);
    return [slice.at(-1)?.[0] ?? 0, slice.reduce((sum, [, loss]) => sum + loss, 0) / slice.length];
  });
  return means;
}

/** @returns the text of an SVG file. */
export async function svgOfCurves(curves: readonly Curve[], title: string): Promise<string> {
  const [{ parse, View }, { compile }] = await Promise.all([import("vega"), import("vega-lite")]);
  const values = curves.flatMap(({ name, points }) => points.map(([step, loss]) => ({ name, step, loss })));
  const { spec } = compile({
    title,
    width: 640,
    height: 320,
    background: "white",
    data: { values },
    // A curve of a single point would be no line.
    mark: { type: "line", point: curves.some(({ points }) => points.length < 30) },
    encoding: {
      x: { field: "step", type: "quantitative", title: "step" },
      y: { field: "loss", type: "quantitative", title: "loss per token", scale: { zero: false } },
      color: { field: "name", type: "nominal", title: null, sort: null },
    },
  });
  return new View(parse(spec), { renderer: "none" }).toSVG();
}
