// Draws the dashboard's panels from a Prometheus as Grafana does, with Grafana's own panel components: where Grafana
// itself can't be had, a person can still look at units, legends, colours and what an empty panel says.
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import {
  FieldConfigOptionsRegistry, FieldType, ThemeContext, applyFieldOverrides, createTheme, dateTime, getDisplayProcessor,
  getFieldDisplayName, identityOverrideProcessor, standardTransformers, standardTransformersRegistry, toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, Table, TimeSeries } from '@grafana/ui';

const asked = new URLSearchParams(location.search);
const [prometheus, node, now] = [asked.get('prometheus'), asked.get('node') ?? '.+', Date.now() / 1000];
const span_s = Number(asked.get('span_s') ?? 120);
const theme = createTheme({ colors: { mode: asked.get('theme') ?? 'dark' } });
const timeRange = { from: dateTime((now - span_s) * 1000), to: dateTime(now * 1000) };
timeRange.raw = timeRange;
const WIDTH = 1600, ROW = 36, GAP = 8;

standardTransformersRegistry.setInit(() => [{
  id: 'organize', name: 'organize', transformation: standardTransformers.organizeFieldsTransformer, editor: () => null,
}]);
const SETTINGS = ['color', 'unit', 'decimals', 'min', 'max', 'thresholds', 'custom'];
const registry = new FieldConfigOptionsRegistry(() => SETTINGS.map((id) => ({
  id, path: id, name: id, process: identityOverrideProcessor, shouldApply: () => true, getItemsCount: () => 1,
})));

const named = (text, labels) => text.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? '');

async function frames(panel) {
  const made = [];
  for (const target of panel.targets) {
    const expr = target.expr.replaceAll('$node', node).replaceAll('$cluster', '.*');
    const where = target.instant ? `query?time=${now}` : `query_range?start=${now - span_s}&end=${now}&step=1`;
    const answer = await (await fetch(`${prometheus}/api/v1/${where}&query=${encodeURIComponent(expr)}`)).json();
    if (answer.status !== 'success') throw new Error(`${panel.title}: ${answer.error}`);
    const series = answer.data.result;
    if (target.format === 'table') {
      const labels = [...new Set(series.flatMap((one) => Object.keys(one.metric)))].sort();
      made.push(toDataFrame({ refId: target.refId, fields: [
        { name: 'Time', type: FieldType.time, values: series.map((one) => one.value[0] * 1000) },
        ...labels.map((name) => ({ name, type: FieldType.string, values: series.map((one) => one.metric[name] ?? '') })),
        { name: 'Value', type: FieldType.number, values: series.map((one) => Number(one.value[1])) },
      ] }));
      continue;
    }
    for (const one of series) {
      const points = one.values ?? [one.value];
      made.push(toDataFrame({ refId: target.refId, fields: [
        { name: 'Time', type: FieldType.time, config: { interval: 1000 }, values: points.map(([at]) => at * 1000) },
        { name: 'Value', type: FieldType.number, labels: one.metric, values: points.map(([, value]) => Number(value)),
          config: target.legendFormat ? { displayNameFromDS: named(target.legendFormat, one.metric) } : {} },
      ] }));
    }
  }
  return made;
}

// The panel plug-in's defaults, which a dashboard's JSON leaves out.
const PLAIN = {
  color: { mode: 'palette-classic' }, thresholds: { mode: 'absolute', steps: [{ color: 'green', value: -Infinity }] },
};
const LINES = { drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, spanNulls: false,
  showPoints: 'never', axisPlacement: 'auto', scaleDistribution: { type: 'linear' } };

function dressed(panel, data) {
  const defaults = { ...(panel.type === 'timeseries' ? PLAIN : { ...PLAIN, color: { mode: 'thresholds' } }),
    ...panel.fieldConfig.defaults };
  defaults.thresholds = { ...defaults.thresholds,
    steps: defaults.thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity })) };
  if (panel.type === 'timeseries') defaults.custom = { ...LINES, ...defaults.custom };
  return applyFieldOverrides({ data, theme, fieldConfig: { ...panel.fieldConfig, defaults },
    replaceVariables: (text) => text, fieldConfigRegistry: registry, timeZone: 'utc' });
}

function Content({ panel, width, height }) {
  const [data, setData] = useState(null);
  const [trouble, setTrouble] = useState('');
  useEffect(() => {
    frames(panel)
      .then((got) => new Promise((done) => transformDataFrame(panel.transformations ?? [], got).subscribe(done)))
      .then((got) => setData(dressed(panel, got)))
      .catch((error) => setTrouble(String(error)))
      .finally(() => { document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1; });
  }, []);
  if (trouble) return <div className="trouble">{trouble}</div>;
  if (!data) return null;
  if (!data.some((frame) => frame.length)) return <div className="empty">No data</div>;
  if (panel.type === 'table') return <Table data={data[0]} width={width} height={height} />;
  if (panel.type === 'stat') {
    return <div style={{ display: 'flex', gap: 4 }}>{data.map((frame, i) => {
      const field = frame.fields[1];
      const display = field.display ?? getDisplayProcessor({ field, theme });
      const value = { ...display(field.values.at(-1)), title: getFieldDisplayName(field, frame, data) };
      return <BigValue key={i} value={value} width={width / data.length - 4} height={height} theme={theme}
        colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} textMode={panel.options.textMode} />;
    })}</div>;
  }
  return <TimeSeries frames={data} width={width} height={height} timeRange={timeRange} timeZone="utc"
    legend={{ showLegend: true, calcs: [], ...panel.options.legend }} options={{}} />;
}

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const [width, height] = [(w / 24) * WIDTH - GAP, h * ROW - GAP];
  const title = panel.title.replaceAll('$node', node);
  const place = { position: 'absolute', left: (x / 24) * WIDTH, top: y * ROW, width, height };
  if (panel.type === 'row') return <h2 style={place}>{title}</h2>;
  return <section style={place} title={panel.description}>
    <h3>{title}</h3><Content panel={panel} width={width - 16} height={height - 40} />
  </section>;
}

const dashboard = await (await fetch('dashboard.json')).json();
const height = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * ROW;
document.head.append(Object.assign(document.createElement('style'), { textContent: `
  html { font-size: 14px } body { margin: 8px; width: ${WIDTH}px; height: ${height}px; position: relative }
  section { background: ${theme.colors.background.primary}; border: 1px solid ${theme.colors.border.weak}; padding: 4px 8px }
  h2 { font-size: 15px; margin: 0; padding: 6px } h3 { font-size: 13px; margin: 0 0 6px }
  .empty, .trouble { display: flex; height: 70%; align-items: center; justify-content: center }` }));
createRoot(document.body.appendChild(document.createElement('div'))).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />{dashboard.panels.map((panel) => <Panel key={panel.id} panel={panel} />)}
  </ThemeContext.Provider>,
);
