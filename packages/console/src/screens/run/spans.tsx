/** The run's trace: where its time went, from the upload to the first answer. */
import type { RunState } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { traceQuery } from "../../data/api.ts";
import { duration } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Loaded } from "../../ui/states.tsx";

const most = 40;

export function Spans({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const [isOpen, setOpen] = useState(false);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{t.run.trace}</summary>
      {isOpen && <Table run={run} />}
    </details>
  );
}

function Table({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const query = useQuery({ ...traceQuery(run.runId), enabled: run.trace !== null });
  if (run.trace === null) return <p className="soft">{t.run.noTrace}</p>;
  return (
    <Loaded query={query}>
      {({ spans }) => {
        if (spans.length === 0) return <p className="soft">{t.run.noTrace}</p>;
        const longest = spans.toSorted((a, b) => b.durationMs - a.durationMs).slice(0, most);
        const shown = longest.toSorted((a, b) => a.startMs - b.startMs);
        const from = Math.min(...shown.map(({ startMs }) => startMs));
        const whole = Math.max(1, ...shown.map(({ startMs, durationMs }) => startMs + durationMs - from));
        return (
          <div className="table-frame" style={{ maxHeight: 420, overflowY: "auto" }} tabIndex={0} role="group" aria-label={t.run.trace}>
            <table>
              <thead>
                <tr>
                  <th>{t.run.spanName}</th>
                  <th className="num">{t.run.spanTime}</th>
                  <th>{t.run.spanPlace}</th>
                </tr>
              </thead>
              <tbody>
                {shown.map(({ spanId, service, name, startMs, durationMs, status }) => (
                  <tr key={spanId}>
                    <th scope="row" lang="en">
                      {name} <span className="small soft plain">{service}</span>
                    </th>
                    <td className="num">{duration(durationMs)}</td>
                    <td className="place">
                      <span className="track" aria-hidden="true">
                        <span
                          style={{
                            marginInlineStart: `${Math.min(99, (100 * (startMs - from)) / whole)}%`,
                            width: `${Math.max(1, (100 * durationMs) / whole)}%`,
                            background: `var(${status === "error" ? "--bad" : "--accent"})`,
                          }}
                        />
                      </span>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        );
      }}
    </Loaded>
  );
}
