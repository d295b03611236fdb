/** Curves by step. uPlot draws ten thousand points in a few milliseconds. */
import { type ReactNode, useEffect, useMemo, useRef, useState } from "react";
import UPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { number } from "../data/format.ts";
import { useSettings } from "../texts/texts.tsx";

export interface Curve {
  name: string;
  /** A variable of styles.css. */
  color: string;
  dashed?: boolean;
  points: readonly (readonly [step: number, value: number])[];
}

const height = 280;
/** There are no half steps. */
const wholeSteps = [1, 2, 5].flatMap((one) => [0, 1, 2, 3, 4, 5, 6].map((power) => one * 10 ** power)).toSorted((a, b) => a - b);
const mostRows = 400;

export function Chart({ curves, label }: { curves: readonly Curve[]; label: string }): ReactNode {
  const { texts: t, theme } = useSettings();
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<UPlot | undefined>(undefined);
  const [isTable, setTable] = useState(false);
  const data = useMemo(() => joined(curves), [curves]);
  const latest = useRef(data);
  latest.current = data;
  // A single point makes no line.
  const isShort = curves.every(({ points }) => points.length < 2);
  const shape = curves.map(({ name, color, dashed }) => `${name}|${color}|${String(dashed)}`).join("\n");

  useEffect(() => {
    const element = place.current;
    if (element === null) return;
    const style = getComputedStyle(document.documentElement);
    const colorOf = (name: string): string => style.getPropertyValue(name).trim();
    const axis: UPlot.Axis = { stroke: colorOf("--soft"), grid: { stroke: colorOf("--line"), width: 1 }, ticks: { show: false } };
    const drawn = new UPlot(
      {
        width: Math.max(200, element.clientWidth),
        height,
        scales: { x: { time: false } },
        legend: { show: false },
        axes: [
          { ...axis, size: 32, incrs: wholeSteps },
          { ...axis, size: 56, values: (_, splits) => splits.map(number) },
        ],
        series: [
          {},
          ...shape.split("\n").map((line): UPlot.Series => {
            const [name = "", color = "", dashed] = line.split("|");
            return {
              label: name,
              stroke: colorOf(color),
              width: 2,
              spanGaps: true,
              ...(dashed === "true" ? { dash: [6, 4], points: { show: true, size: 6 } } : { points: { show: isShort, size: 8 } }),
            };
          }),
        ],
      },
      latest.current,
      element,
    );
    plot.current = drawn;
    const resized = new ResizeObserver(() => drawn.setSize({ width: Math.max(200, element.clientWidth), height }));
    resized.observe(element);
    return () => {
      resized.disconnect();
      drawn.destroy();
      plot.current = undefined;
    };
    // Colours are read anew when the appearance changes.
  }, [shape, theme, isTable, isShort]);
  useEffect(() => plot.current?.setData(data), [data]);

  const longest = curves.toSorted((a, b) => b.points.length - a.points.length)[0]?.points ?? [];
  const summary = t.run.chartSummary(label, longest.length, number(longest[0]?.[1]), number(longest.at(-1)?.[1]));
  return (
    <div className="stack-s">
      <div className="spread">
        <div className="legend small">
          {curves.map(({ name, color, points }) => (
            <span className="key" key={name}>
              <span className="swatch" style={{ background: `var(${color})` }} aria-hidden="true" />
              {name} <span className="num soft">{number(points.at(-1)?.[1])}</span>
            </span>
          ))}
        </div>
        <button type="button" className="button small" aria-pressed={isTable} onClick={() => setTable(!isTable)}>
          {isTable ? t.run.asChart : t.run.asTable}
        </button>
      </div>
      {isTable ? (
        <ChartTable curves={curves} data={data} label={label} />
      ) : (
        <>
          <div className="chart" ref={place} role="img" aria-label={summary} />
          <p className="small soft">{t.run.chartHint}</p>
        </>
      )}
    </div>
  );
}

function ChartTable({ curves, data, label }: { curves: readonly Curve[]; data: UPlot.AlignedData; label: string }): ReactNode {
  const { texts: t } = useSettings();
  const [steps, ...values] = data;
  const every = Math.max(1, Math.ceil(steps.length / mostRows));
  const rows = Array.from(steps, (step, at) => ({ step, at })).filter(({ at }) => at % every === 0 || at === steps.length - 1);
  return (
    <div className="table-frame" style={{ maxHeight: height + 40, overflowY: "auto" }} tabIndex={0} role="group" aria-label={label}>
      <table>
        <thead>
          <tr>
            <th className="num">{t.run.step}</th>
            {curves.map(({ name }) => (
              <th className="num" key={name}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ step, at }) => (
            <tr key={step}>
              <td className="num">{step}</td>
              {values.map((column, n) => (
                <td className="num" key={curves[n]?.name}>
                  {number(column[at])}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** One list of steps for all curves, as uPlot wants it; null where a curve has no point. */
function joined(curves: readonly Curve[]): UPlot.AlignedData {
  const steps = [...new Set(curves.flatMap(({ points }) => points.map(([step]) => step)))].toSorted((a, b) => a - b);
  const columns = curves.map(({ points }) => {
    const known = new Map(points);
    return steps.map((step) => known.get(step) ?? null);
  });
  return [steps, ...columns];
}
