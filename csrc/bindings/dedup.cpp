// MinHash and deduplication for Python. Conversions only, as in bindings.cpp.
#include "bindings/dedup.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "dedup/dedup_index.hpp"
#include "dedup/minhasher.hpp"
#include "bindings/python.hpp"

namespace vikhr {
namespace {

using Hashes = py::array_t<std::uint64_t, py::array::c_style>;

ShingleKind shingle_kind(const std::string& unit, std::uint32_t length) {
  if (unit != "word" && unit != "char") throw std::invalid_argument("unit is word or char");
  return {unit == "word" ? ShingleUnit::word : ShingleUnit::character, length};
}

Isa isa_of(const std::optional<std::string>& name) {
  if (!name) return best_isa();
  if (*name == "scalar") return Isa::scalar;
  if (*name == "avx2") return require_isa(Isa::avx2);
  if (*name == "avx512") return require_isa(Isa::avx512);
  throw std::invalid_argument("isa is scalar, avx2 or avx512");
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names{"scalar", "avx2", "avx512"};
  names.resize(static_cast<std::size_t>(best_isa()) + 1);
  return names;
}

py::array_t<std::uint32_t> table(std::size_t rows, std::size_t columns) {
  return py::array_t<std::uint32_t>(
      {static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(columns)});
}

py::tuple shingles(const MinHasher& hasher, const HeldTexts& held, bool replaces, int threads) {
  const unsigned count = thread_count(threads);
  ShingleSets sets;
  {
    const py::gil_scoped_release released;
    sets = hasher.sets(held.texts(), policy(replaces), count);
  }
  py::array_t<bool> is_short(static_cast<py::ssize_t>(sets.is_short.size()));
  std::copy(sets.is_short.begin(), sets.is_short.end(), is_short.mutable_data());
  return py::make_tuple(to_numpy(std::move(sets.values)), to_numpy(std::move(sets.offsets)),
                        is_short);
}

auto signatures(const MinHasher& hasher, const HeldTexts& held, bool replaces, int threads) {
  const unsigned count = thread_count(threads);
  const Texts texts = held.texts();
  auto result = table(texts.size(), hasher.minhash().settings().num_perm);
  std::uint32_t* out = result.mutable_data();
  const py::gil_scoped_release released;
  hasher.signatures(texts, policy(replaces), count, out);
  return result;
}

auto band_keys(const MinHasher& hasher, const Hashes& values, const Integers& offsets,
               int threads) {
  const unsigned count = thread_count(threads);
  const std::size_t sets = check_offsets(offsets, length_of(values, "values"), "hashes");
  auto result = table(sets, hasher.minhash().settings().bands);
  std::uint32_t* out = result.mutable_data();
  const py::gil_scoped_release released;
  hasher.band_keys(values.data(), offsets.data(), sets, count, out);
  return result;
}

py::array_t<double> jaccard_of_pairs(const Hashes& values, const Integers& offsets,
                                     const Integers& pairs) {
  const std::size_t sets = check_offsets(offsets, length_of(values, "values"), "hashes");
  if (pairs.ndim() != 2 || pairs.shape(1) != 2) {
    throw std::invalid_argument("pairs must have the shape [pairs, 2]");
  }
  const auto count = static_cast<std::size_t>(pairs.shape(0));
  for (std::size_t i = 0; i < 2 * count; ++i) {
    const std::int64_t set = pairs.data()[i];
    if (set < 0 || set >= static_cast<std::int64_t>(sets) ||
        offsets.data()[set] == offsets.data()[set + 1]) {
      throw py::index_error("pair " + std::to_string(i / 2) + " names set " + std::to_string(set) +
                            ", which is not one of the " + std::to_string(sets) + " or is empty");
    }
  }
  py::array_t<double> result(static_cast<py::ssize_t>(count));
  double* out = result.mutable_data();
  const py::gil_scoped_release released;
  const auto set = [&](std::int64_t i) -> ShingleSet {
    const std::int64_t start = offsets.data()[i];
    return {values.data() + start, static_cast<std::size_t>(offsets.data()[i + 1] - start)};
  };
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = jaccard(set(pairs.data()[2 * i]), set(pairs.data()[2 * i + 1]));
  }
  return result;
}

void save(DedupIndex& index, const py::function& write) {
  const py::gil_scoped_release released;
  index.save([&](std::string_view bytes) {
    const py::gil_scoped_acquire acquired;
    write(py::memoryview::from_memory(bytes.data(), static_cast<py::ssize_t>(bytes.size())));
  });
}

std::unique_ptr<DedupIndex> load(const py::buffer& buffer) {
  const py::buffer_info info = buffer.request();
  const std::string_view bytes = bytes_of(info, "the saved index");
  const py::gil_scoped_release released;
  return DedupIndex::load(bytes, best_isa());
}

// Whoever saves an index holds its lock while waiting for the GIL: nobody may wait for the lock with the GIL.
py::array_t<std::int64_t> clusters_of(const DedupIndex& index) {
  std::vector<std::int64_t> clusters;
  {
    const py::gil_scoped_release released;
    clusters = index.clusters();
  }
  return to_numpy(std::move(clusters));
}

py::dict counts_of(const DedupIndex& index) {
  DedupCounts counts;
  {
    const py::gil_scoped_release released;
    counts = index.counts();
  }
  py::dict result;
  result["texts"] = counts.texts;
  result["kept"] = counts.kept;
  result["identical"] = counts.identical;
  result["short_texts"] = counts.short_texts;
  result["candidates"] = counts.candidates;
  result["index_bytes"] = counts.bytes;
  return result;
}

py::tuple settings_of(const DedupIndex& index) {
  const DedupSettings& settings = index.settings();
  return py::make_tuple(settings.shingle.unit == ShingleUnit::word ? "word" : "char",
                        settings.shingle.length, settings.minhash.num_perm, settings.minhash.bands,
                        settings.minhash.seed, settings.threshold,
                        settings.clustering == Clustering::transitive);
}

}  // namespace

void bind_minhash(py::module_& module) {
  py::register_exception<IndexError>(module, "IndexFileError", PyExc_ValueError);

  py::class_<HeldTexts>(module, "Texts")
      .def_static("from_sequence", [](const py::sequence& texts) { return HeldTexts(texts); },
                  py::arg("texts"))
      .def_static("from_buffers",
                  [](const std::vector<std::pair<py::buffer, Integers>>& parts) {
                    return HeldTexts(parts);
                  },
                  py::arg("parts"))
      .def("__len__", [](const HeldTexts& held) { return held.texts().size(); });

  py::class_<MinHasher>(module, "MinHasher")
      .def(py::init([](const std::string& unit, std::uint32_t length, std::uint32_t num_perm,
                       std::uint32_t bands, std::uint64_t seed,
                       const std::optional<std::string>& isa) {
             return std::make_unique<MinHasher>(shingle_kind(unit, length),
                                                MinHashSettings{num_perm, bands, seed},
                                                isa_of(isa));
           }),
           py::arg("unit"), py::arg("length"), py::arg("num_perm"), py::arg("bands"),
           py::arg("seed"), py::arg("isa") = py::none())
      .def("shingles", &shingles, py::arg("texts"), py::arg("replaces"), py::arg("threads"))
      .def("signatures", &signatures, py::arg("texts"), py::arg("replaces"), py::arg("threads"))
      .def("band_keys", &band_keys, py::arg("values").noconvert(), py::arg("offsets"),
           py::arg("threads"));

  py::class_<DedupIndex>(module, "DedupIndex")
      .def(py::init([](const std::string& unit, std::uint32_t length, std::uint32_t num_perm,
                       std::uint32_t bands, std::uint64_t seed, double threshold, bool transitive,
                       const std::optional<std::string>& isa) {
             const DedupSettings settings{shingle_kind(unit, length),
                                          {num_perm, bands, seed},
                                          threshold,
                                          transitive ? Clustering::transitive : Clustering::star};
             return std::make_unique<DedupIndex>(settings, isa_of(isa));
           }),
           py::arg("unit"), py::arg("length"), py::arg("num_perm"), py::arg("bands"),
           py::arg("seed"), py::arg("threshold"), py::arg("transitive"),
           py::arg("isa") = py::none())
      .def("add",
           [](DedupIndex& index, const HeldTexts& held, bool replaces, int threads) {
             const unsigned count = thread_count(threads);
             const py::gil_scoped_release released;
             index.add(held.texts(), policy(replaces), count);
           },
           py::arg("texts"), py::arg("replaces"), py::arg("threads"))
      .def("match",
           [](DedupIndex& index, const HeldTexts& held, bool replaces, int threads) {
             const unsigned count = thread_count(threads);
             std::vector<std::int64_t> found;
             {
               const py::gil_scoped_release released;
               found = index.match(held.texts(), policy(replaces), count);
             }
             return to_numpy(std::move(found));
           },
           py::arg("texts"), py::arg("replaces"), py::arg("threads"))
      .def("clusters", &clusters_of)
      .def("counts", &counts_of)
      .def("settings", &settings_of)
      .def("save", &save, py::arg("write"))
      .def_static("load", &load, py::arg("bytes"));

  module.def("jaccard_of_pairs", &jaccard_of_pairs, py::arg("values").noconvert(),
             py::arg("offsets"), py::arg("pairs"));
  module.def("isa_names", &isa_names);
}

}  // namespace vikhr
