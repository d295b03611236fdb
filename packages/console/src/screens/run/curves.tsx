/** What was measured at each step: the losses, and on request what tells how the training itself goes. */
import type { RunMetrics, RunState } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import { Tabs } from "radix-ui";
import { type ReactNode, useMemo, useState } from "react";
import { isOver, metricsQuery, stepsQuery } from "../../data/api.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Chart, type Curve } from "../../ui/chart.tsx";
import { Loaded } from "../../ui/states.tsx";

type Point = RunMetrics["data"][number];
const measured = ["learning_rate", "grad_norm", "tokens_per_second"] as const;

export function Curves({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const [shown, setShown] = useState("loss");
  return (
    <Tabs.Root value={shown} onValueChange={setShown} className="stack-s">
      <Tabs.List className="tabs" aria-label={t.run.curves}>
        {(["loss", ...measured] as const).map((name) => (
          <Tabs.Trigger key={name} value={name}>
            {t.run.curveNames[name]}
          </Tabs.Trigger>
        ))}
      </Tabs.List>
      <Tabs.Content value="loss" tabIndex={-1}>
        <Losses run={run} />
      </Tabs.Content>
      {measured.map((name) => (
        <Tabs.Content key={name} value={name} tabIndex={-1}>
          <Measured run={run} name={name} />
        </Tabs.Content>
      ))}
    </Tabs.Root>
  );
}

const pointsOf = (data: readonly Point[], pick: (point: Point) => number | null | undefined): Curve["points"] =>
  data.flatMap((point) => {
    const value = pick(point);
    return typeof value === "number" ? [[point.step, value] as const] : [];
  });

function Losses({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const query = useQuery(metricsQuery(run.runId));
  const data = query.data?.data;
  const curves = useMemo((): Curve[] => {
    const held = pointsOf(data ?? [], ({ valid_loss: loss }) => loss);
    return [
      { name: t.run.trainLoss, color: "--accent", points: pointsOf(data ?? [], ({ train_loss: loss }) => loss) },
      ...(held.length === 0 ? [] : [{ name: t.run.validLoss, color: "--second", dashed: true, points: held }]),
    ];
  }, [data, t]);
  return (
    <Loaded query={query}>
      {({ data: points }) =>
        points.length === 0 ? (
          <p className="soft">{isOver(run) ? t.run.noCurveKept : t.run.noCurve}</p>
        ) : (
          <Chart curves={curves} label={t.run.curveNames.loss} />
        )
      }
    </Loaded>
  );
}

function Measured({ run, name }: { run: RunState; name: (typeof measured)[number] }): ReactNode {
  const t = useTexts();
  const query = useQuery(stepsQuery(run.runId));
  const data = query.data?.data;
  const curves = useMemo(
    (): Curve[] => [{ name: t.run.curveNames[name], color: "--accent", points: pointsOf(data ?? [], (point) => point[name]) }],
    [data, name, t],
  );
  return (
    <Loaded query={query}>
      {() =>
        curves.every(({ points }) => points.length === 0) ? (
          <p className="soft">{run.startedAt === null ? t.run.noCurve : t.run.notMeasured}</p>
        ) : (
          <Chart curves={curves} label={t.run.curveNames[name]} />
        )
      }
    </Loaded>
  );
}
