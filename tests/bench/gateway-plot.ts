/** Draws the throughput table. */
import { parse, View } from "vega";
import { compile, type TopLevelSpec } from "vega-lite";

export async function drawThroughput(points: readonly { adapters: number; path: string; tokensPerSecond: number }[]): Promise<string> {
  const spec: TopLevelSpec = {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    title: "Tokens per second on one vLLM, by number of adapters",
    width: 480,
    height: 260,
    background: "white",
    data: { values: points.map((point) => ({ ...point, adapters: point.adapters === 0 ? "base" : String(point.adapters) })) },
    mark: { type: "bar" },
    encoding: {
      x: { field: "adapters", type: "nominal", sort: null, title: "adapters in turns", axis: { labelAngle: 0 } },
      xOffset: { field: "path" },
      y: { field: "tokensPerSecond", type: "quantitative", title: "tokens per second" },
      color: { field: "path", type: "nominal", title: "path" },
    },
  };
  return new View(parse(compile(spec).spec), { renderer: "none" }).toSVG();
}
