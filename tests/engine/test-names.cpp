// Options that people type, and tables that they read.

#include "test.h"

#include "ggml-hugepages/error.h"
#include "ggml-hugepages/names.h"

TEST(names, a_size_is_read_as_people_write_it) {
    const struct { const char * text; size_t size; } good[] = {
        { "2M",         2*MIB }, { "2m",    2*MIB }, { "2MB", 2*MIB }, { "2mb",   2*MIB }, { "2MiB", 2*MIB }, { "2mib", 2*MIB },
        { "1G",         GIB   }, { "1gb",   GIB   }, { "1GiB", GIB  }, { "16G", 16*GIB   }, { "512M", 512*MIB },
        { "64K",       64*KIB }, { "64kb", 64*KIB }, { "2048K", 2*MIB }, { "1024M", GIB  },
        { "2097152",    2*MIB }, { "1073741824", GIB },
        { "auto", GGML_HUGEPAGES_SIZE_AUTO }, { "thp", GGML_HUGEPAGES_SIZE_THP },
    };
    for (const auto & [text, size] : good) {
        size_t got = 12345;
        if (!CHECK(ggml_hugepages_size_from_str(text, &got)) || !CHECK_EQ(got, size)) {
            test_fail(__FILE__, __LINE__, text);
        }
    }
}

TEST(names, what_is_no_page_size_is_refused_and_changes_nothing) {
    for (const char * text : { "", " ", "-1", "+2M", "-2M", " 2M", "2M ", "2 M", "30 GB", "M", "GiB", "0", "0M", "1e99", "1.5M", "0x200000", "3M", "2097151",
            "2097153", "1", "4K", "2T", "2MM", "2Mi", "2MiBs", "Auto", "auto ", "THP", "none", "17179869184G", "18446744073709551616", "36893488147419103232M",
            "99999999999999999999999999", "2M\n", "\xff" }) {
        size_t got = 12345;
        if (!CHECK(!ggml_hugepages_size_from_str(text, &got)) || !CHECK_EQ(got, (size_t) 12345)) {
            test_fail(__FILE__, __LINE__, std::string("'") + text + "'");
        }
    }
}

TEST(names, a_policy_is_read_back_from_its_name) {
    for (const auto policy : { GGML_HUGEPAGES_POLICY_REQUIRE, GGML_HUGEPAGES_POLICY_PREFER }) {
        auto got = policy == GGML_HUGEPAGES_POLICY_REQUIRE ? GGML_HUGEPAGES_POLICY_PREFER : GGML_HUGEPAGES_POLICY_REQUIRE;
        CHECK(ggml_hugepages_policy_from_str(ggml_hugepages_policy_name(policy), &got));
        CHECK_EQ(got, policy);
    }
    auto got = GGML_HUGEPAGES_POLICY_PREFER;
    CHECK(!ggml_hugepages_policy_from_str("", &got));
    CHECK(!ggml_hugepages_policy_from_str("Require", &got));
    CHECK_EQ(got, GGML_HUGEPAGES_POLICY_PREFER);
}

TEST(names, a_backing_has_a_short_name) {
    const struct { ggml_hugepages_backing backing; size_t page_size; const char * name; } all[] = {
        { GGML_HUGEPAGES_BACKING_HUGE,  64*KIB, "64K"  }, { GGML_HUGEPAGES_BACKING_HUGE, 2*MIB, "2M" },
        { GGML_HUGEPAGES_BACKING_HUGE, 512*MIB, "512M" }, { GGML_HUGEPAGES_BACKING_HUGE, GIB,   "1G" }, { GGML_HUGEPAGES_BACKING_HUGE, 16*GIB, "16G" },
        { GGML_HUGEPAGES_BACKING_THP,    2*MIB, "thp"  }, { GGML_HUGEPAGES_BACKING_BASE, 0, "base" }, { GGML_HUGEPAGES_BACKING_FILE, 0, "file" },
    };
    for (const auto & [backing, page_size, name] : all) {
        char buf[16];
        CHECK_EQ(ggml_hugepages_backing_to_str(backing, page_size, buf, sizeof(buf)), (int) std::string(name).size());
        CHECK_EQ(std::string(buf), name);
    }
    // like snprintf, it also counts the bytes that did not fit
    char small[2];
    CHECK_EQ(ggml_hugepages_backing_to_str(GGML_HUGEPAGES_BACKING_FILE, 0, small, sizeof(small)), 4);
    CHECK_EQ(std::string(small), "f");
}

TEST(names, a_report_never_rounds_up_to_all) {
    ggml_hugepages_report report = {};
    report.n_usages = 2;
    report.n_nodes  = 1;
    report.usages[0].kind          = GGML_HUGEPAGES_KIND_WEIGHTS;
    report.usages[0].backing       = GGML_HUGEPAGES_BACKING_HUGE;
    report.usages[0].page_size     = 2*MIB;
    report.usages[0].bytes         = 4095*MIB;
    report.usages[0].pages         = 2048;
    report.usages[0].node_bytes[0] = 4096*MIB;
    report.usages[1].kind          = GGML_HUGEPAGES_KIND_KV;
    report.usages[1].backing       = GGML_HUGEPAGES_BACKING_BASE;
    report.usages[1].bytes         = 1*MIB;
    char buf[1024];
    const int n = ggml_hugepages_report_to_str(&report, buf, sizeof(buf));
    const std::string text = buf;
    CHECK_EQ((size_t) n, text.size());
    CHECK(text.find("4095.00 of 4096.00 MiB on huge pages (99.9 %)") != std::string::npos);
    CHECK(text.find("weights    2M            4095.00     2048        4096.00") != std::string::npos);
    CHECK(text.find("kv         base             1.00        0           0.00") != std::string::npos);
    CHECK(text.find("later growth") == std::string::npos);

    report.late = 3*MIB;
    ggml_hugepages_report_to_str(&report, buf, sizeof(buf));
    CHECK(std::string(buf).find(", 3.00 MiB of later growth in ordinary memory") != std::string::npos);
    CHECK_EQ(ggml_hugepages_report_to_str(&report, nullptr, 0), (int) std::string(buf).size());

    CHECK(std::string(buf).find("node that reads") == std::string::npos);
    report.usages[0].local_bytes  = 3999*MIB;
    report.usages[0].remote_bytes = 1*MIB;
    ggml_hugepages_report_to_str(&report, buf, sizeof(buf));
    CHECK(std::string(buf).find("\nweights on 2M: 3999.00 of 4000.00 MiB of matrices are on the node that reads them (99.9 %)\n") != std::string::npos);

    report = {};
    ggml_hugepages_report_to_str(&report, buf, sizeof(buf));
    CHECK(std::string(buf).find("0.00 of 0.00 MiB on huge pages (0.0 %)") != std::string::npos);
}
